// What the page knows apart from the data of its views: where it is, who looks, how the last question went.

import * as router from "./router.js";

export const page = {
  /** @type {router.Route} */
  route: router.parse(location.hash),
  /** The answer of `whoami`; null until it came. */
  me: null,
  /** Whether a token must be typed first. */
  signedOut: false,
  /** What the view has loaded; null until it came. */
  data: null,
  /** Whether what is shown is not yet what the address asks for. */
  isBusy: true,
  /** Why the last question failed. */
  error: null,
  /** When the last answer came, in ms of this browser. */
  heardAt: 0,
  /** Whether the view loads again by itself. */
  live: true,
  /** Chosen rows of the view, by id. */
  chosen: new Set(),
  /** What a view remembers until it is left: payloads, open parts. */
  memory: {},
  /** The latest snapshot: numbers beside the names of views. */
  snapshot: null,
};

let paint = () => {};
let load = () => {};

export function connect(calls) {
  paint = calls.paint;
  load = calls.load;
}

export const repaint = () => paint();
/** Asks for the data of the view again, now. */
export const reload = () => load();

/** Whether the one who looks may do something: `operate` or `payloads`. */
export const may = (right) => page.me?.rights.includes(right) ?? false;

/** Goes to the same view with other values in its address. The page before starts anew. */
export function refine(changes) {
  const { view, id, query } = page.route;
  location.hash = router.link(view, id, { ...query, after: "", ...changes });
}

export function choose(id, isChosen) {
  if (isChosen) page.chosen.add(id);
  else page.chosen.delete(id);
  paint();
}
