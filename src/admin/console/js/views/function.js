// One function: what it does now, what holds it, and what became of its latest events.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import * as actions from "../actions.js";
import * as api from "../api.js";
import { chart, extended } from "../chart.js";
import { duration, functionName, message, moment, number, percent, rate, said, settingValue, short, visible } from "../format.js";
import { may, page, refine } from "../page.js";
import { link } from "../router.js";
import { laneState, pauseButton } from "../table.js";
import { outcomes } from "./activity.js";

const RECENT = 50;
/** Settings change with a reload of the daemon only. */
const SETTINGS_MS = 30_000;

async function load({ id, query }, signal) {
  const window = query.window === "1h" ? "1h" : "5m";
  const kept = page.memory.window === window ? page.memory.series : null;
  const since = kept?.times.length ? kept.times.at(-1) : "";
  const none = (error) => {
    if (error.status === 404) return null;
    throw error;
  };
  const [list, answer, recent, settings] = await Promise.all([
    api.functions({ function: id }, signal).catch(none),
    api.series({ window, since, function: id }, signal).catch(none),
    api.recent({ function: id, limit: RECENT }, signal),
    settingsOf(id, signal),
  ]);
  const series = answer && extended(kept, answer, window === "1h" ? 360 : 300);
  Object.assign(page.memory, { window, series });
  return { lane: list?.functions.find((lane) => lane.function === id) ?? null, series, recent, window, settings };
}

async function settingsOf(id, signal) {
  const { settings, settingsAt = 0 } = page.memory;
  if (settings && Date.now() - settingsAt < SETTINGS_MS) return settings;
  const { entries } = await api.config(id, signal);
  Object.assign(page.memory, { settings: entries, settingsAt: Date.now() });
  return entries;
}

function render({ lane, series, recent, window, settings }, { id }) {
  if (!lane) return html`${unknown(id, recent)}${inEffect(settings)}`;
  return html`
    <div class="head"><a href="#/functions">Functions</a><h1>${functionName(id)}</h1>${laneState(lane)}
      <span class="grow"></span>${buttons(lane)}</div>
    ${why(lane)}
    <div class="card tiles" role="group" aria-label="Numbers">
      ${tile("Ready", short(lane.ready), "due now", link("events", null, { function: id, state: "ready" }))}
      ${tile("Waiting", short(lane.waiting), "will be retried", link("events", null, { function: id, state: "waiting" }))}
      ${tile("Scheduled", short(lane.scheduled), "not due yet", link("events", null, { function: id, state: "scheduled" }))}
      ${tile("Oldest waits", duration(lane.oldest_age_seconds), "", link("events", null, { function: id }))}
      ${tile("In flight", number(lane.in_flight), lane.limit === null ? "" : `limit ${number(lane.limit)}, account ${number(lane.account_limit)}`, link("events", null, { function: id, in_flight: "true" }))}
      ${tile("Dead letters", short(lane.buried), "in the store", link("dead-letters", null, { function: id }))}
    </div>
    ${charts(series, window)}
    <section class="card" aria-labelledby="latest"><header><h2 id="latest" class="grow">Latest outcomes</h2><a href=${link("activity", null, { function: id })}>All of them</a></header>
      ${outcomes(recent.outcomes, false)}</section>
    ${inEffect(settings)}`;
}

/** What the configuration says of this function, and where. */
function inEffect(all) {
  const isOwn = (entry) => entry.key.startsWith("functions.");
  const entries = [...all.filter(isOwn), ...all.filter((entry) => !isOwn(entry))];
  return html`<section class="card" aria-labelledby="settings"><header><h2 id="settings" class="grow">Settings in effect</h2><a href="#/configuration">All of them</a></header>
    <div class="scroll"><table><thead><tr><th scope="col">Setting</th><th scope="col">Value</th><th scope="col">Of</th><th scope="col">From</th></tr></thead>
      <tbody>${entries.map((entry) => {
        const at = entry.key.lastIndexOf(".");
        const [table, name] = [entry.key.slice(0, at), entry.key.slice(at + 1)];
        return html`<tr><th scope="row" class="mono t">${visible(name)}</th><td class="mono name">${settingValue(entry.value)}</td><td class="mono name ${isOwn(entry) ? "" : "muted"}">[${visible(table)}]</td><td class="name ${entry.origin === "default" ? "muted" : ""}">${visible(entry.origin)}</td></tr>`;
      })}</tbody></table></div></section>`;
}

const tile = (label, value, sub, to) => html`<a class="tile" href=${to}><span class="label">${label}</span><span class="value">${value}</span><span class="sub">${sub}</span></a>`;

function buttons(lane) {
  if (!may("operate")) return nothing;
  const { function: name } = lane;
  return html`<div class="actions">${pauseButton(lane)}
    <button ?disabled=${!lane.waiting} @click=${() => actions.onAll("attempt", { function: name, state: "waiting" })}>Attempt all that wait …</button>
    <button class="danger" ?disabled=${!lane.depth} @click=${() => actions.purgeFunction(name)}>Purge …</button></div>`;
}

function why(lane) {
  const { held, paused, last_error: error, failing_since: since } = lane;
  if (!held && !paused && !error) return nothing;
  return html`<section class="card" aria-label="Why"><div class="pad"><dl class="facts">
    ${paused ? html`<dt>Paused</dt><dd>by an operator: its events are kept, and still expire</dd>` : nothing}
    ${held ? html`<dt>Held</dt><dd>${message(held.reason)} <span class="muted">(${held.kind}, of the ${held.scope})</span></dd><dt>Until</dt><dd>${moment(held.until)}: then sendoff tries again by itself</dd>` : nothing}
    ${since ? html`<dt>Failing since</dt><dd>${moment(since)}</dd>` : nothing}
    ${error ? html`<dt>Last error</dt><dd>${said(error.message)} <span class="muted">${moment(error.at)}</span></dd>` : nothing}
    <dt>Last minute</dt><dd>${number(lane.delivered_per_minute)} delivered, ${number(lane.failed_per_minute)} failed${lane.rates ? html`, ${percent(lane.rates.throttled_per_second, lane.rates.attempts_per_second)} throttled` : nothing}</dd>
  </dl></div></section>`;
}

function charts(series, window) {
  if (!series) return html`<p class="muted">The daemon keeps charts of its 50 busiest functions, and this is none of them just now.</p>`;
  const perSecond = (value) => `${rate(value)}/s`;
  const line = (label, name, tone, more) => ({ label, values: series[name] ?? [], tone, ...more });
  /** @type {Omit<import("../chart.js").Model, "times">[]} */
  const shown = [
    { title: "Events a second", say: perSecond, lines: [line("accepted", "accepted", 1), line("delivered", "delivered", 2), line("throttled", "throttled", 3)] },
    { title: "In flight and limit", say: short, unit: "events", lines: [line("in flight", "in_flight", 1), line("limit", "limit", 5, { dashed: true })] },
    { title: "Backlog", say: short, unit: "events", lines: [line("to be delivered", "backlog", 3)] },
  ];
  const pick = (name, text) => html`<button aria-pressed=${window === name} @click=${() => refine({ window: name })}>${text}</button>`;
  return html`<section class="head" aria-label="Charts"><h2 class="grow">The last ${window === "1h" ? "hour" : "five minutes"}</h2><div class="group">${pick("5m", "5 min")}${pick("1h", "1 h")}</div></section>
    <div class="three">${shown.map((model) => chart({ times: series.times, ...model }))}</div>`;
}

function unknown(id, recent) {
  return html`<div class="head"><a href="#/functions">Functions</a><h1>${functionName(id)}</h1></div>
    <section class="card"><div class="empty"><p>The daemon has no event of this function, and had none some minutes ago.</p></div></section>
    ${recent.outcomes.length ? html`<section class="card"><header><h2>Latest outcomes</h2></header>${outcomes(recent.outcomes, false)}</section>` : nothing}`;
}

export default { title: ({ id }) => visible(id), load, render };
