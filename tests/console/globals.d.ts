// uPlot is loaded by a script of its own.
declare const uPlot: any;
