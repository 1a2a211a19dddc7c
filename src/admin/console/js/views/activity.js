// What happened lately: the outcomes of attempts, and what operators did.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import * as api from "../api.js";
import { functionName, number, said, state, visible, when } from "../format.js";
import { page } from "../page.js";
import { link } from "../router.js";
import { field, idLink } from "../table.js";

const OUTCOMES = 100;
const ALL_OUTCOMES = 1_000;
const ACTIONS = 300;

const isAudit = (query) => query.tab === "operators";

async function load({ query }, signal) {
  return isAudit(query) ? { actions: (await api.actions(ACTIONS, signal)).actions } : { outcomes: (await api.recent({ function: query.function, limit: query.all ? ALL_OUTCOMES : OUTCOMES }, signal)).outcomes };
}

function render(data, { query }) {
  const audit = isAudit(query);
  const tab = (to, label, isHere) => html`<a href=${to} aria-current=${isHere ? "page" : nothing}>${label}</a>`;
  return html`
    <div class="head"><h1 class="grow">Activity</h1></div>
    <nav class="tabs" aria-label="Kinds of activity">${tab("#/activity", "Outcomes", !audit)}${tab(link("activity", null, { tab: "operators" }), "Operators", audit)}</nav>
    ${audit ? (data.actions ? auditCard(data.actions) : nothing) : data.outcomes ? outcomeCard(data.outcomes) : nothing}`;
}

const outcomeCard = (list) => html`<section class="card"><header class="filters">${field("function", "Function", "orders-*", "wide")}</header>
  ${outcomes(list, true)}
  <div class="foot"><span class="grow">${list.length ? `The last ${number(list.length)}, newest first. ` : nothing}The daemon keeps ${number(ALL_OUTCOMES)} in memory; docs/metrics.md has the counters of all.</span>
    ${list.length === OUTCOMES ? html`<a class="button" href=${link("activity", null, { ...page.route.query, all: "true" })}>Show all that it keeps</a>` : nothing}</div></section>`;

const TONES = { delivered: "done", "handed-over": "done", shipped: "done", redriven: "done", expired: "buried", purged: "stopped", cancelled: "stopped", throttled: "held", held: "held", unready: "held" };
const NEXT = { done: "gone from the store", retry: "retry due", buried: "buried" };

/** A table of outcomes, newest first. */
export function outcomes(list, hasFunction) {
  if (!list.length) return html`<div class="empty"><p>No outcomes yet.</p></div>`;
  return html`<div class="scroll"><table>
    <thead><tr><th scope="col">When</th><th scope="col">Event</th>${hasFunction ? html`<th scope="col">Function</th>` : nothing}<th scope="col">Outcome</th><th scope="col">Answer</th><th scope="col" class="n">Attempts</th><th scope="col">Then</th></tr></thead>
    <tbody>${[...list].reverse().map((one) => html`<tr>
      <td class="t">${when(one.at)}</td><th scope="row" class="t">${idLink(one.id)}</th>
      ${hasFunction ? html`<td class="name"><a href=${link("functions", one.function)}>${functionName(one.function)}</a></td>` : nothing}
      <td><span class="state ${TONES[one.outcome] ?? "failed"}">${visible(one.outcome).replaceAll("-", " ")}</span></td>
      <td>${said([one.status || "", one.code].filter(Boolean).join(" ")) }</td><td class="n">${number(one.attempts)}</td>
      <td class="t">${NEXT[one.next] ?? visible(one.next)}${one.due ? html` ${when(one.due)}` : nothing}</td></tr>`)}</tbody></table></div>`;
}

function auditCard(list) {
  const cells = (one) => html`<tr>
    <td class="t">${when(one.at)}</td><th scope="row">${said(one.operator)} <span class="muted">${one.proof === "none" ? "" : one.proof}</span></th>
    <td class="t">${visible(one.action).replaceAll("-", " ")}</td><td class="name">${one.object ? said(one.object) : nothing}${one.filter ? html` <span class="muted">${said(one.filter)}</span>` : nothing}</td>
    <td>${state(one.result)} ${one.status ? html`<span class="muted">${one.status}</span>` : nothing}</td>
    <td class="n">${one.events === null ? "" : number(one.events)}</td><td class="mono">${visible(one.peer)}</td></tr>`;
  return html`<section class="card">${list.length ? html`<div class="scroll" tabindex="0" role="region" aria-label="What operators did"><table>
    <thead><tr><th scope="col">When</th><th scope="col">Operator</th><th scope="col">Action</th><th scope="col">On</th><th scope="col">Result</th><th scope="col" class="n">Events</th><th scope="col">From</th></tr></thead>
    <tbody>${[...list].reverse().map(cells)}</tbody></table></div>` : html`<div class="empty"><p>No operator has changed anything, or looked at a payload, since the daemon's start.</p></div>`}
    <div class="foot"><span>In memory. The daemon's log has all of it, as <code>sendoff::audit</code>.</span></div></section>`;
}

export default { title: () => "Activity", every: () => (isAudit(page.route.query) || page.route.query.all ? 5_000 : 2_000), load, render };
