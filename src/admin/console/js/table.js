// Pieces that several tables share.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { functionName, state, visible, when } from "./format.js";
import { choose, may, page, refine } from "./page.js";
import { link } from "./router.js";
import { pause, resume } from "./actions.js";

/** The first cell of a row about a function. `data-row` makes it a stop of `j` and `k`. */
export const functionCell = (name, isStop = true) =>
  html`<th scope="row" class="name"><a href=${link("functions", name)} ?data-row=${isStop}>${functionName(name)}</a></th>`;

/** An id: its end tells events apart, as its start is the time. */
export const idLink = (id, isStop = true) =>
  html`<a class="mono" href=${link("events", id)} title=${id} ?data-row=${isStop}><span class="hidden-text">${id}</span><span aria-hidden="true">…${id.slice(-10)}</span></a>`;

/** A column by which the table can be sorted. The address has it as `sort=-depth`. */
export function sortable(key, label, sort, extra = "") {
  const isUp = sort === key;
  const isDown = sort === `-${key}`;
  return html`<th scope="col" class=${extra} aria-sort=${isUp ? "ascending" : isDown ? "descending" : nothing}>
    <button class="link" @click=${() => refine({ sort: isDown ? key : `-${key}` })}>${label}<span aria-hidden="true">${isUp ? "▲" : isDown ? "▼" : ""}</span></button>
  </th>`;
}

/** A box to choose a row. */
export const tick = (id, what) => html`<td class="tick"><input type="checkbox" aria-label="Choose ${what}"
  .checked=${live(page.chosen.has(id))} @change=${(event) => choose(id, event.target.checked)}></td>`;

/** A box to choose all rows. */
export function tickAll(ids) {
  const chosen = ids.filter((id) => page.chosen.has(id)).length;
  return html`<th scope="col" class="tick"><input type="checkbox" aria-label="Choose all rows" ?disabled=${!ids.length}
    .checked=${live(chosen > 0 && chosen === ids.length)} .indeterminate=${live(chosen > 0 && chosen < ids.length)}
    @change=${(event) => ids.forEach((id) => choose(id, event.target.checked))}></th>`;
}

/** What a function is doing, in one word. */
export function laneState(lane) {
  if (lane.paused) return state("paused");
  if (lane.held) return html`<span title=${visible(lane.held.reason)}>${state("held", html`${lane.held.kind === "held" ? "" : `${lane.held.kind}, `}retry ${when(lane.held.until)}`)}</span>`;
  if (lane.failing_since) return state("failing", html`since ${when(lane.failing_since)}`);
  return lane.depth || lane.in_flight || lane.delivered_per_minute ? state("open") : state("idle");
}

export function pauseButton(lane) {
  if (!may("operate")) return nothing;
  return lane.paused
    ? html`<button data-pause @click=${() => resume(lane.function)}>Resume<span class="hidden-text"> ${visible(lane.function)}</span></button>`
    : html`<button data-pause @click=${() => pause(lane.function)}>Pause<span class="hidden-text"> ${visible(lane.function)}</span></button>`;
}

/** A field of a filter. What is typed is asked for on Enter, or when the field is left. */
export function field(key, label, placeholder, extra = "") {
  return html`<label>${label}<input type="text" class=${extra} placeholder=${placeholder} spellcheck="false" autocomplete="off" name=${key}
    .value=${live(page.route.query[key] ?? "")} @change=${(event) => refine({ [key]: event.target.value.trim() })}></label>`;
}

export function choice(key, label, options) {
  const value = page.route.query[key] ?? "";
  return html`<label>${label}<select name=${key} .value=${live(value)} @change=${(event) => refine({ [key]: event.target.value })}>
    ${options.map(([word, text]) => html`<option value=${word} ?selected=${word === value}>${text}</option>`)}</select></label>`;
}

/** The line below a table whose rows come page by page. */
export function pages({ shown, total, next, more }) {
  const { view, id, query } = page.route;
  return html`<div class="foot">
    <span class="grow">${shown}${total}</span>
    ${query.after ? html`<a class="button" href=${link(view, id, { ...query, after: "" })}>First page</a>` : nothing}
    ${next ? html`<a class="button" href=${link(view, id, { ...query, after: next })}>${more}</a>` : nothing}
  </div>`;
}

/**
 * Loads a page of a list. The daemon looks at a bounded number of records for each answer, so with a narrow filter some
 * answers are empty: asks again a few times.
 */
export async function somePages(ask, query, of, signal) {
  const TURNS = 5;
  let found = await ask(query, signal);
  for (let turn = 1; turn < TURNS && found.next && !of(found).length; turn += 1) {
    found = await ask({ ...query, after: found.next }, signal);
  }
  return found;
}
