// Charts: uPlot in an element of its own, with its numbers as a table for those who cannot see it. And sparklines.

import { html, nothing, render, svg } from "../vendor/lit-html/lit-html.js";
import { timeOfDay } from "./format.js";

/* global uPlot */

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {(number|null)[]} values
 * @property {1|2|3|4|5} tone
 * @property {boolean} [dashed]
 *
 * @typedef {object} Model
 * @property {string} title
 * @property {number[]} times UNIX seconds
 * @property {Line[]} lines
 * @property {(value: number) => string} say a value with its unit
 * @property {"bytes"|"events"|"seconds"} [unit] what the ticks of the axis are multiples of
 * @property {boolean} [stacked] the lines are parts of a whole
 */

const HEIGHT = 144;
/** The steps between the ticks of an axis, by unit. */
const STEPS = {
  bytes: Array.from({ length: 44 }, (_, i) => 2 ** i),
  events: Array.from({ length: 36 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3)),
  seconds: [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800],
};
const TABLE_ROWS = 30;

class Chart extends HTMLElement {
  #model = null;
  #plot = null;
  #shape = "";
  #isTable = false;
  #at = null;
  #watch = new ResizeObserver(() => this.#resize());
  #onTheme = () => this.#build();

  /** @param {Model} model */
  set model(model) {
    // A column that does not apply is empty.
    this.#model = { ...model, lines: model.lines.filter((line) => line.values.length === model.times.length) };
    if (this.isConnected) this.#update();
  }

  connectedCallback() {
    this.#watch.observe(this);
    window.addEventListener("themechange", this.#onTheme);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.#onTheme);
    if (this.#model) this.#update();
  }

  disconnectedCallback() {
    this.#watch.disconnect();
    window.removeEventListener("themechange", this.#onTheme);
    matchMedia("(prefers-color-scheme: dark)").removeEventListener("change", this.#onTheme);
    this.#plot?.destroy();
    this.#plot = null;
  }

  #update() {
    const shape = JSON.stringify([this.#model.lines.map((line) => [line.label, line.tone]), hasNumbers(this.#model)]);
    this.#frame();
    if (this.#plot && shape === this.#shape) this.#plot.setData(this.#columns());
    else this.#build();
    this.#shape = shape;
  }

  #frame() {
    const { title, lines, times, say } = this.#model;
    const at = this.#at ?? times.length - 1;
    const shown = (line) => known(line.values, this.#at === null ? undefined : at);
    render(html`<figure>
      <figcaption>
        <h2 class="grow">${title}</h2>
        <span class="muted">${this.#at === null || !times[at] ? nothing : timeOfDay(times[at] * 1_000)}</span>
        <button class="plain muted" aria-pressed=${this.#isTable} @click=${() => this.#swap()}>${this.#isTable ? "chart" : "table"}</button>
      </figcaption>
      <ul class="legend">${lines.map((line) => html`<li><i class="s${line.tone}"></i>${line.label} <b>${shown(line) === null ? "–" : say(shown(line))}</b></li>`)}</ul>
      <span class="s-axis" hidden></span><span class="s-grid" hidden></span>
      ${this.#isTable ? this.#table() : html`<div class="plot" role="img" aria-label="${title}: ${summary(this.#model)}">${hasNumbers(this.#model) ? nothing : html`<p class="empty">The first numbers come in a few seconds.</p>`}</div>`}
    </figure>`, this);
  }

  #table() {
    const { times, lines, say } = this.#model;
    const step = Math.max(1, Math.ceil(times.length / TABLE_ROWS));
    const rows = times.map((_, i) => i).filter((i) => (times.length - 1 - i) % step === 0).reverse();
    return html`<div class="plot table" tabindex="0" role="region" aria-label="${this.#model.title}, as a table"><table>
      <thead><tr><th scope="col">Time</th>${lines.map((line) => html`<th scope="col" class="n">${line.label}</th>`)}</tr></thead>
      <tbody>${rows.map((i) => html`<tr><th scope="row" class="t">${timeOfDay(times[i] * 1_000)}</th>${lines.map((line) => html`<td class="n">${line.values[i] === null ? "–" : say(line.values[i])}</td>`)}</tr>`)}</tbody>
    </table></div>`;
  }

  #swap() {
    this.#isTable = !this.#isTable;
    this.#plot?.destroy();
    this.#plot = null;
    this.#frame();
    this.#build();
  }

  #columns() {
    const { times, lines, stacked } = this.#model;
    if (!stacked) return [times, ...lines.map((line) => line.values)];
    // The first line lies on top of all others, so each is the sum of itself and those below it.
    const sums = [];
    for (const line of [...lines].reverse()) {
      const below = sums.at(-1);
      sums.push(line.values.map((value, i) => (value === null ? null : value + (below?.[i] ?? 0))));
    }
    return [times, ...sums.reverse()];
  }

  #build() {
    this.#plot?.destroy();
    this.#plot = null;
    const place = this.querySelector(".plot:not(.table)");
    if (!place || !this.#model || !hasNumbers(this.#model)) return;
    this.#plot = new uPlot(this.#options(place), this.#columns(), place);
  }

  #options(place) {
    const { lines, say, stacked, unit } = this.#model;
    const colour = (name) => getComputedStyle(this.querySelector(name)).color;
    const axis = { stroke: colour(".s-axis"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: colour(".s-grid"), width: 1 } };
    return {
      width: place.clientWidth - 12,
      height: HEIGHT,
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, y: false, points: { show: false } },
      scales: { x: { time: true }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, size: 24, space: 52, incrs: [60, 120, 300, 600, 900, 1_800, 3_600], values: (_, ticks) => ticks.map((tick) => timeOfDay(tick * 1_000, false)) },
        { ...axis, size: 64, space: 34, incrs: STEPS[unit], values: (_, ticks) => ticks.map((tick) => say(tick)) },
      ],
      series: [{}, ...lines.map((line) => {
        const stroke = colour(`.s${line.tone}`);
        return { label: line.label, stroke, width: 1.5, fill: stacked ? mixed(stroke, getComputedStyle(this).backgroundColor) : undefined, dash: line.dashed ? [4, 4] : undefined, points: { show: false }, spanGaps: true };
      })],
      hooks: { setCursor: [(plot) => this.#point(plot.cursor.idx)] },
    };
  }

  #point(at) {
    this.#at = at ?? null;
    this.#frame();
  }

  #resize() {
    const place = this.querySelector(".plot:not(.table)");
    if (this.#plot && place) this.#plot.setSize({ width: place.clientWidth - 12, height: HEIGHT });
  }
}

/** A third of one colour over another: what lies below must not shine through. */
function mixed(colour, back) {
  const parts = (text) => text.match(/[\d.]+/g).map(Number);
  const under = parts(back);
  return `rgb(${parts(colour).slice(0, 3).map((part, i) => Math.round(part * 0.35 + under[i] * 0.65)).join(" ")})`;
}

customElements.define("x-chart", Chart);

const hasNumbers = ({ times, lines }) => times.length > 1 && lines.some((line) => line.values.some((value) => value !== null));

/** The value at a place, or else the last known one. */
function known(values, at) {
  if (at !== undefined) return values[at] ?? null;
  for (let i = values.length - 1; i >= 0; i -= 1) if (values[i] !== null) return values[i];
  return null;
}

function summary({ lines, say }) {
  return lines.map((line) => {
    const there = line.values.filter((value) => value !== null);
    return there.length ? `${line.label} ${say(there.at(-1))}, at most ${say(Math.max(...there))}` : `${line.label} unknown`;
  }).join("; ");
}

/** @param {Model} model */
export const chart = (model) => html`<x-chart class="card" .model=${model}></x-chart>`;

/** A line without axes, beside a number that says what it shows. */
export function spark(values, tone = 1) {
  // What is unknown is no zero: the line goes straight to the next number that is known.
  const there = values.map((value, i) => [i, value]).filter(([, value]) => value !== null && value !== undefined);
  const high = Math.max(...there.map(([, value]) => value), 0);
  const x = (i) => (values.length > 1 ? (i * 100) / (values.length - 1) : 0).toFixed(1);
  const y = (value) => (high > 0 ? 25 - (value * 23) / high : 25).toFixed(1);
  const points = there.map(([i, value]) => `${x(i)},${y(value)}`).join(" ");
  const [first, last] = [there[0]?.[0] ?? 0, there.at(-1)?.[0] ?? 0];
  return html`<svg class="spark s${tone}" viewBox="0 0 100 26" preserveAspectRatio="none" aria-hidden="true">
    ${there.length > 1 ? svg`<polygon points="${x(first)},25 ${points} ${x(last)},25"></polygon><polyline points=${points}></polyline>` : svg`<line x1="0" y1="25" x2="100" y2="25"></line>`}
  </svg>`;
}

/** How much of something is used. */
export function meter(part, label) {
  const width = Math.min(100, Math.max(0, part * 100)).toFixed(1);
  return html`<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label=${label}><rect width=${width} height="6" fill="currentColor"></rect></svg>`;
}

/** Keeps a series that grows: the points of an answer behind those that are there, at most `max` of them. */
export function extended(kept, answer, max) {
  if (!kept || !kept.times.length || kept.step_seconds !== answer.step_seconds) return answer;
  const last = kept.times.at(-1);
  const from = answer.times.findIndex((time) => time > last);
  const fresh = from < 0 ? [] : answer.times.slice(from);
  const joined = { ...answer };
  for (const [name, values] of Object.entries(answer)) {
    if (!Array.isArray(values) || name === "functions") continue;
    const added = from < 0 ? [] : values.slice(from);
    joined[name] = [...(kept[name] ?? []), ...added].slice(-max);
  }
  joined.times = [...kept.times, ...fresh].slice(-max);
  return joined;
}
