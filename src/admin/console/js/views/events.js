// Stored events, by filter. And the box that finds one by its id, or by its idempotency key.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import { repeat } from "../../vendor/lit-html/directives/repeat.js";
import { live } from "../../vendor/lit-html/directives/live.js";
import * as actions from "../actions.js";
import * as api from "../api.js";
import { functionName, lastError, number, said, state, visible, when } from "../format.js";
import { may, page, refine, repaint } from "../page.js";
import { given, link } from "../router.js";
import { choice, field, idLink, pages, somePages, tick, tickAll } from "../table.js";
import { complain } from "../toasts.js";

const STATES = [["", "any"], ["ready", "ready"], ["waiting", "waiting"], ["scheduled", "scheduled"], ["buried", "buried"]];
const ID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

const wanted = ({ function: name, state: word, since, until, attempts_min, error, in_flight, after }) =>
  ({ function: name, state: word, since, until, attempts_min, error, in_flight, after });

/**
 * Filters that make the daemon look at more records than it shows.
 * @param {Record<string, string>} query
 */
const isNarrow = ({ since, until, attempts_min, error, in_flight }) => Boolean(since || until || attempts_min || error || in_flight);

async function load({ query }, signal) {
  try {
    return await somePages(api.events, wanted(query), (found) => found.events, signal);
  } catch (error) {
    if (error.status === 404) return { events: [], next: null, total: 0 };
    throw error;
  }
}

function render({ events, next, total }, { query }) {
  return html`
    <div class="head"><h1 class="grow">Events</h1>${finder()}</div>
    <section class="card">
      <header class="filters">
        ${field("function", "Function", "orders-*", "wide")}${choice("state", "State", STATES)}
        ${field("since", "Accepted since", "2h, or a time", "short")}${field("until", "until", "10min", "short")}
        ${field("attempts_min", "Attempts, at least", "3", "short")}${field("error", "Last error contains", "Throttl")}
        <label class="check"><input type="checkbox" .checked=${live(query.in_flight === "true")} @change=${(event) => refine({ in_flight: event.target.checked ? "true" : "" })}> in flight</label>
        ${Object.keys(given(query)).length ? html`<a class="button" href="#/events">Clear</a>` : nothing}
      </header>
      ${bar(query, total)}
      ${events.length ? table(events) : html`<div class="empty"><p>${next ? "None of the records that the daemon looked at fits. Look further below." : Object.keys(given(query)).length ? "No stored event fits." : "No events are stored: all that were accepted are delivered, or gone in another way."}</p></div>`}
      ${pages({ shown: `${number(events.length)} shown`, total: isNarrow(query) ? `; ${number(total)} of this function and state are stored` : `, ${number(total)} in all`, next, more: events.length ? "Next page" : "Look further" })}
    </section>`;
}

function finder() {
  const submit = async (event) => {
    event.preventDefault();
    const text = String(new FormData(event.target).get("find")).trim();
    if (ID.test(text)) location.hash = link("events", text);
    else if (text) await byKey(text);
  };
  return html`<form class="actions" role="search" @submit=${submit}>
    <input type="search" name="find" class="wide" aria-label="An event's id, or an idempotency key" placeholder="Id, or idempotency key" spellcheck="false" autocomplete="off">
    <button>Find</button></form>`;
}

/** A key belongs to a function, so that of the filter is asked. */
async function byKey(text) {
  const name = page.route.query.function;
  if (!name || name.includes("*")) {
    complain("This is no event's id. To look for an idempotency key, first enter its function in the filter, in full.");
    return;
  }
  try {
    location.hash = link("events", (await api.key(name, text)).first);
  } catch (error) {
    complain(visible(error.message));
  }
}

function bar(query, total) {
  if (!may("operate")) return nothing;
  const chosen = [...page.chosen];
  const { function: name, state: word, since, until, attempts_min, error } = given(wanted(query));
  const filter = given({ function: name, state: word, since, until, attempts_min: Number(attempts_min) || "", error });
  if (chosen.length) {
    return html`<div class="foot chosen"><span class="grow">${number(chosen.length)} chosen</span>
      <button @click=${() => actions.onChosen("attempt", chosen)}>Attempt now</button>
      <button class="danger" @click=${() => actions.onChosen("cancel", chosen)}>Cancel …</button>
      <button class="plain" @click=${() => (page.chosen.clear(), repaint())}>Choose none</button></div>`;
  }
  if (!total || word === "buried" || query.in_flight) return nothing;
  return html`<div class="foot"><span class="grow">All that match:</span>
    <button @click=${() => actions.onAll("attempt", filter)}>Attempt now …</button>
    <button class="danger" @click=${() => actions.onAll("cancel", filter)}>Cancel …</button></div>`;
}

function table(events) {
  const isOperator = may("operate");
  return html`<div class="scroll"><table>
    <thead><tr>${isOperator ? tickAll(events.filter(canTouch).map((event) => event.id)) : nothing}<th scope="col">Event</th><th scope="col">Function</th><th scope="col">State</th><th scope="col">Accepted</th><th scope="col">Due</th><th scope="col" class="n">Attempts</th><th scope="col">Last error</th></tr></thead>
    <tbody>${repeat(events, (event) => event.id, (event) => row(event, isOperator))}</tbody></table></div>`;
}

const canTouch = (event) => event.state !== "buried" && !event.in_flight;

const row = (event, isOperator) => html`<tr>
  ${isOperator ? (canTouch(event) ? tick(event.id, `event ${event.id}`) : html`<td></td>`) : nothing}
  <th scope="row" class="t">${idLink(event.id)}</th>
  <td class="name"><a href=${link("functions", event.function)}>${functionName(event.function)}</a></td>
  <td>${state(event.in_flight ? "in-flight" : event.state, event.in_flight ? event.state : "")}</td>
  <td class="t">${when(event.accepted_at)}</td>
  <td class="t">${event.state === "buried" ? "–" : when(event.due)}</td>
  <td class="n ${event.attempts ? "" : "zero"}">${number(event.attempts)}</td>
  <td class="clip">${event.unreadable ? html`<span class="bad">cannot be read: ${said(event.unreadable)}</span>` : event.last_error ? html`<b>${said(lastError(event.last_error))}</b> <span class="muted">${said(event.last_error.message)}</span>` : html`<span class="zero">–</span>`}</td></tr>`;

// A narrow filter looks at thousands of records, so it is not asked for again by itself; nor is a page in the middle.
export default { title: () => "Events", every: () => (isNarrow(page.route.query) || page.route.query.after ? 0 : 3_000), load, render };
