// All functions, to be sorted by any column.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import { repeat } from "../../vendor/lit-html/directives/repeat.js";
import * as api from "../api.js";
import { cell, count, duration, number, percent, rate } from "../format.js";
import { page, refine } from "../page.js";
import { field, functionCell, laneState, pauseButton, sortable } from "../table.js";

/** Rows at once. A browser is slow with tens of thousands. */
const ROWS = 200;

const COLUMNS = {
  function: (lane) => lane.function,
  state: (lane) => (lane.held ? 4 : lane.failing_since ? 3 : lane.paused ? 2 : lane.depth ? 1 : 0),
  paused: (lane) => Number(lane.paused),
  depth: (lane) => lane.depth,
  ready: (lane) => lane.ready,
  waiting: (lane) => lane.waiting,
  scheduled: (lane) => lane.scheduled,
  buried: (lane) => lane.buried,
  oldest_age_seconds: (lane) => lane.oldest_age_seconds ?? -1,
  in_flight: (lane) => lane.in_flight,
  accepted: (lane) => lane.rates?.accepted_per_second ?? -1,
  delivered: (lane) => lane.delivered_per_minute,
  failed: (lane) => lane.failed_per_minute,
  throttled: (lane) => (lane.rates?.attempts_per_second ? lane.rates.throttled_per_second / lane.rates.attempts_per_second : -1),
};

async function load(route, signal) {
  const name = route.query.function ?? "";
  try {
    return await api.functions({ function: name }, signal);
  } catch (error) {
    // No function fits: an answer, and no failure.
    if (error.status === 404) return { functions: [] };
    throw error;
  }
}

export function sorted(functions, sort) {
  const isDown = sort.startsWith("-");
  const value = COLUMNS[isDown ? sort.slice(1) : sort] ?? COLUMNS.depth;
  const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : 0);
  return [...functions].sort((a, b) => (isDown ? order(b, a) : order(a, b)) || (a.function < b.function ? -1 : 1));
}

function render({ functions }, route) {
  const sort = route.query.sort ?? "-depth";
  const rows = Number(route.query.rows) || ROWS;
  const all = sorted(functions, sort);
  const shown = all.slice(0, rows);
  return html`
    <div class="head"><h1 class="grow">Functions</h1></div>
    <section class="card">
      <header class="filters">${field("function", "Function", "orders-*", "wide")}</header>
      ${shown.length ? table(shown, sort) : html`<div class="empty"><p>${route.query.function ? "No function that has events, or had some minutes ago, fits." : "No function has events."}</p></div>`}
      <div class="foot"><span class="grow">${count(all.length, "function")}${all.length > shown.length ? `, ${number(shown.length)} of them shown` : ""}</span>
        ${all.length > shown.length ? html`<button @click=${() => refine({ rows: rows + ROWS })}>Show ${number(ROWS)} more</button>` : nothing}</div>
    </section>`;
}

function table(shown, sort) {
  const n = (key, label) => sortable(key, label, sort, "n");
  return html`<div class="scroll"><table>
    <thead><tr>${sortable("function", "Function", sort)}${sortable("state", "State", sort)}${n("depth", "To deliver")}${n("waiting", "Waiting")}${n("buried", "Dead letters")}${n("oldest_age_seconds", "Oldest")}${n("in_flight", "In flight")}${n("accepted", "Accepted/s")}${n("delivered", "Delivered/min")}${n("failed", "Failed/min")}${n("throttled", "Throttled")}<th scope="col"><span class="hidden-text">Actions</span></th></tr></thead>
    <tbody>${repeat(shown, (lane) => lane.function, row)}</tbody></table></div>`;
}

const row = (lane) => html`<tr>
  ${functionCell(lane.function)}<td>${laneState(lane)}</td>
  <td class="n ${lane.depth ? "" : "zero"}" title="${number(lane.ready)} ready, ${number(lane.waiting)} waiting, ${number(lane.scheduled)} scheduled">${number(lane.depth)}</td>${cell(lane.waiting)}${cell(lane.buried, "bad")}
  <td class="n">${duration(lane.oldest_age_seconds)}</td>
  <td class="n">${number(lane.in_flight)}${lane.limit === null ? nothing : html` <span class="muted">of ${number(lane.limit)}</span>`}</td>
  <td class="n ${lane.rates?.accepted_per_second ? "" : "zero"}">${lane.rates ? rate(lane.rates.accepted_per_second) : "–"}</td>
  ${cell(lane.delivered_per_minute)}${cell(lane.failed_per_minute, "warn")}
  <td class="n">${lane.rates ? percent(lane.rates.throttled_per_second, lane.rates.attempts_per_second) : "–"}</td>
  <td class="n">${pauseButton(lane)}</td></tr>`;

export default { title: () => "Functions", every: () => ((page.data?.functions.length ?? 0) > 1_000 ? 10_000 : 2_000), load, render };
