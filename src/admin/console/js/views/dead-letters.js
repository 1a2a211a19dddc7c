// Dead letters in the store: groups to see what went wrong, and the letters to act on.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import { repeat } from "../../vendor/lit-html/directives/repeat.js";
import * as actions from "../actions.js";
import * as api from "../api.js";
import { bytes, cell, functionName, lastError, number, said, visible, when } from "../format.js";
import { may, page, repaint } from "../page.js";
import { given, link } from "../router.js";
import { choice, field, idLink, pages, somePages, tick, tickAll } from "../table.js";

const REASONS = [["", "any"], ["retries-exhausted", "retries exhausted"], ["event-age-exceeded", "too old"], ["refused", "refused"]];
const SHIPPABLE = [["", "any"], ["true", "no queue can take it"], ["false", "for a queue"]];
/** Groups at once; the rest on request. */
const GROUPS = 12;

const wanted = ({ function: name, reason, error, since, until, unshippable, after }) => ({ function: name, reason, error, since, until, unshippable, after });

async function load({ query }, signal) {
  const none = (empty) => (error) => {
    if (error.status === 404) return empty;
    throw error;
  };
  const [letters, groups, queues] = await Promise.all([
    somePages(api.letters, wanted(query), (found) => found.dead_letters, signal).catch(none({ dead_letters: [], unreadable: [], next: null, buried: 0, shipped: 0, queues: [] })),
    api.groups({ function: query.function }, signal).catch(none({ groups: [], counted: 0, buried: 0, complete: true })),
    api.queues(signal),
  ]);
  return { letters, groups, queues };
}

function render({ letters, groups, queues }, { query }) {
  return html`
    <div class="head"><h1 class="grow">Dead letters</h1></div>
    ${whither(letters, queues)}
    ${groups.groups.length ? groupTable(groups) : nothing}
    ${list(letters, query)}`;
}

function whither({ queues: urls, shipped }, { queue_url: url, functions }) {
  const command = urls[0] ? `sendoff redrive --queue-url ${urls[0]} --dry-run` : "";
  if (!url && !functions.length) return html`<p class="muted">No queue is configured (<code>dead_letter.queue_url</code>), so dead letters stay in the store until somebody redrives or purges them.</p>`;
  return html`<section class="card" aria-label="Queues"><div class="pad"><dl class="facts">
    <dt>Queue</dt><dd>${urls.map((one) => html`<div><code>${visible(one)}</code></div>`)}</dd>
    <dt>Shipped</dt><dd>${number(shipped)} since the start. What is below waits for a queue, or none can take it.</dd>
    <dt>From the queue</dt><dd><code>${visible(command)}</code> <button class="link" @click=${() => actions.copy(command, "The command")}>copy</button></dd>
  </dl></div></section>`;
}

function groupTable({ groups, complete, counted, buried }) {
  const shown = page.memory.allGroups ? groups : groups.slice(0, GROUPS);
  const all = () => {
    page.memory.allGroups = true;
    repaint();
  };
  return html`<section class="card" aria-labelledby="groups">
    <header><h2 id="groups">By cause</h2>${complete ? nothing : html`<span class="muted">about: the daemon looked at ${number(counted)} of ${number(buried)}</span>`}</header>
    <div class="scroll"><table><thead><tr><th scope="col">Function</th><th scope="col">Reason</th><th scope="col">Code</th><th scope="col" class="n">Letters</th><th scope="col" class="n">Unshippable</th><th scope="col">Oldest</th><th scope="col">Newest</th><th scope="col">Example</th>${may("operate") ? html`<th scope="col"><span class="hidden-text">Actions</span></th>` : nothing}</tr></thead>
      <tbody>${shown.map(group)}</tbody></table></div>
    ${groups.length > shown.length ? html`<div class="foot"><button @click=${all}>Show all ${number(groups.length)} causes</button></div>` : nothing}</section>`;
}

function group({ function: name, reason, code, events, unshippable, oldest_buried_at: oldest, newest_buried_at: newest, example }) {
  // Also a code that is empty tells this group from others.
  const filter = { ...given({ function: name, reason }), code };
  const what = `${number(events)} of ${visible(name)}, ${visible(code || reason)}`;
  return html`<tr>
    <th scope="row" class="name"><a data-row href=${link("dead-letters", null, { function: name, reason, error: code })}>${functionName(name)}</a></th>
    <td class="t">${said(reason ?? "unknown")}</td><td>${code ? html`<b>${said(code)}</b>` : html`<span class="zero">–</span>`}</td>
    ${cell(events)}${cell(unshippable, "bad")}<td class="t">${when(oldest)}</td><td class="t">${when(newest)}</td><td>${example ? idLink(example, false) : nothing}</td>
    ${may("operate") ? html`<td class="t"><button aria-label="Redrive ${what}" @click=${() => actions.onAll("redrive", filter)}>Redrive …</button> <button class="danger" aria-label="Purge ${what}" @click=${() => actions.onAll("purge", filter)}>Purge …</button></td>` : nothing}</tr>`;
}

function list({ dead_letters: letters, unreadable, next, buried }, query) {
  const isFiltered = Object.keys(given(query)).length > 0;
  return html`<section class="card" aria-label="Letters">
    <header class="filters">${field("function", "Function", "orders-*", "wide")}${choice("reason", "Reason", REASONS)}${field("error", "Error contains", "Timeout")}
      ${field("since", "Buried since", "2h, or a time", "short")}${field("until", "until", "10min", "short")}${choice("unshippable", "Queue", SHIPPABLE)}
      ${isFiltered ? html`<a class="button" href="#/dead-letters">Clear</a>` : nothing}</header>
    ${bar(query, buried)}
    ${letters.length || unreadable.length ? table(letters, unreadable) : html`<div class="empty"><p>${next ? "None of the letters that the daemon looked at fits. Look further below." : isFiltered ? "No dead letter in the store fits." : "No dead letters are in the store."}</p></div>`}
    ${pages({ shown: `${number(letters.length)} shown`, total: `; ${number(buried)} of ${query.function ? "these functions" : "all functions"} are in the store`, next, more: letters.length ? "Next page" : "Look further" })}
  </section>`;
}

function bar(query, buried) {
  if (!may("operate") && !may("payloads")) return nothing;
  const chosen = [...page.chosen];
  if (chosen.length) {
    return html`<div class="foot chosen"><span class="grow">${number(chosen.length)} chosen</span>
      <button @click=${() => actions.onChosen("redrive", chosen)}>Redrive …</button>
      <button class="danger" @click=${() => actions.onChosen("purge", chosen)}>Purge …</button>
      <button class="plain" @click=${() => (page.chosen.clear(), repaint())}>Choose none</button></div>`;
  }
  if (!buried) return nothing;
  const { after, unshippable, ...rest } = wanted(query);
  const filter = given({ ...rest, unshippable: unshippable ? unshippable === "true" : "" });
  if (unshippable === "false") filter.unshippable = false;
  return html`<div class="foot"><span class="grow">All that match:</span>
    ${may("operate") ? html`<button @click=${() => actions.onAll("redrive", filter)}>Redrive …</button>
      <button class="danger" @click=${() => actions.onAll("purge", filter)}>Purge …</button>` : nothing}
    ${may("payloads") ? html`<button @click=${() => actions.exportLetters(filter)}>Export …</button>` : nothing}</div>`;
}

function table(letters, unreadable) {
  const isOperator = may("operate");
  const ids = [...letters.filter((letter) => !letter.shipping), ...unreadable].map((letter) => letter.id);
  return html`<div class="scroll"><table>
    <thead><tr>${isOperator ? tickAll(ids) : nothing}<th scope="col">Event</th><th scope="col">Function</th><th scope="col">Reason</th><th scope="col">Buried</th><th scope="col">Accepted</th><th scope="col" class="n">Attempts</th><th scope="col" class="n">Size</th><th scope="col">Last error</th></tr></thead>
    <tbody>${repeat(letters, (letter) => letter.id, (letter) => row(letter, isOperator))}
      ${unreadable.map((letter) => html`<tr>${isOperator ? tick(letter.id, `unreadable letter ${letter.id}`) : nothing}<th scope="row">${idLink(letter.id)}</th><td colspan="7" class="bad">cannot be read: ${said(letter.why)}</td></tr>`)}</tbody></table></div>`;
}

const row = (letter, isOperator) => html`<tr>
  ${isOperator ? (letter.shipping ? html`<td></td>` : tick(letter.id, `dead letter ${letter.id}`)) : nothing}
  <th scope="row" class="t">${idLink(letter.id)}</th>
  <td class="name"><a href=${link("functions", letter.function)}>${functionName(letter.function)}</a></td>
  <td class="t">${said(letter.reason ?? "")}${letter.unshippable ? html` <span class="bad">unshippable</span>` : letter.shipping ? html` <span class="muted">shipping</span>` : nothing}</td>
  <td class="t">${when(letter.buried_at)}</td><td class="t">${when(letter.accepted_at)}</td>
  <td class="n">${number(letter.attempts)}</td><td class="n">${bytes(letter.payload_bytes)}</td>
  <td class="clip">${letter.unshippable ? html`<span class="bad">${said(letter.unshippable)}</span> ` : nothing}${letter.last_error ? html`<b>${said(lastError(letter.last_error))}</b> <span class="muted">${said(letter.last_error.message)}</span>` : html`<span class="zero">–</span>`}</td></tr>`;

export default { title: () => "Dead letters", every: () => (page.route.query.after || page.route.query.error || page.data?.groups.buried > 10_000 ? 0 : 5_000), load, render };
