// The overview: what is wrong and what to do about it, then the numbers.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import { repeat } from "../../vendor/lit-html/directives/repeat.js";
import * as api from "../api.js";
import { chart, extended, meter, spark } from "../chart.js";
import { bytes, cell, count, duration, message, number, percent, rate, said, short, visible, when } from "../format.js";
import { page, refine } from "../page.js";
import { link } from "../router.js";
import { functionCell, laneState, pauseButton } from "../table.js";

const DEEPEST = 10;
const POINTS = { "5m": 300, "1h": 360 };

/** Where a kind of problem is looked into. */
const PLACES = {
  "not-ready": ["configuration", {}], configuration: ["configuration", {}], reload: ["configuration", {}], certificate: ["configuration", {}],
  unshippable: ["dead-letters", { unshippable: "true" }], shipping: ["dead-letters", {}], "dead-letters": ["dead-letters", {}],
  late: ["events", {}], paused: ["functions", { sort: "-paused" }],
};
const SEVERITIES = { critical: ["bad", "critical"], warning: ["warn", "warning"], info: ["calm", "note"] };

const windowOf = (route) => (route.query.window === "1h" ? "1h" : "5m");

async function load(route, signal) {
  const window = windowOf(route);
  const kept = page.memory.window === window ? page.memory.series : null;
  const since = kept?.times.length ? kept.times.at(-1) : "";
  const [snapshot, answer] = await Promise.all([api.snapshot(signal), api.series({ window, since }, signal)]);
  const series = extended(kept, answer, POINTS[window]);
  Object.assign(page.memory, { window, series });
  page.snapshot = snapshot;
  return { snapshot, series };
}

function render({ snapshot, series }, route) {
  const { status, functions } = snapshot;
  return html`
    <h1 class="hidden-text">Overview</h1>
    ${attention(status)}
    ${tiles(snapshot, series)}
    ${charts(series, route)}
    ${deepest(functions, snapshot.functions_total)}
    ${status.fleet ? fleet(status.fleet) : nothing}
    ${store(snapshot)}`;
}

/** The daemons that share the outbox. */
function fleet({ members, unowned }) {
  const tell = (tone, text) => html`<span class="state ${tone}">${text}</span>`;
  const beat = (member) => (member.draining ? tell("stopped", "draining") : member.answers ? tell("open", "answers") : tell("failing", "does not answer"));
  return html`<section class="card" aria-labelledby="fleet">
    <header><h2 id="fleet" class="grow">Daemons that share this outbox</h2>${unowned ? html`<span class="warn">${count(unowned, "function")} of nobody just now</span>` : nothing}</header>
    <div class="scroll"><table>
      <thead><tr><th scope="col">Daemon</th><th scope="col">State</th><th scope="col" class="n">Functions</th><th scope="col" class="n">Events</th><th scope="col" class="n">Bytes</th><th scope="col" class="n">Last beat</th><th scope="col">Since</th><th scope="col">Version</th></tr></thead>
      <tbody>${repeat(members, (member) => member.name, (member) => html`<tr>
        <th scope="row" class="name">${said(member.name)}${member.this ? html` <span class="muted">this one</span>` : nothing}</th>
        <td class="t">${beat(member)}</td>${cell(member.functions)}${cell(member.events)}<td class="n">${bytes(member.bytes)}</td>
        <td class="n ${member.beat_age_seconds > 6 ? "warn" : ""}">${duration(member.beat_age_seconds)} ago</td><td class="t">${when(member.since)}</td><td>${said(member.version)}</td></tr>`)}</tbody>
    </table></div></section>`;
}

function attention(status) {
  const { problems } = status;
  const isUrgent = problems.some((problem) => problem.severity !== "info");
  if (!problems.length) {
    return html`<section class="card" aria-label="Needs attention"><div class="well">
      <svg viewBox="0 0 20 20" aria-hidden="true"><circle cx="10" cy="10" r="9" fill="none" stroke="currentColor" stroke-width="1.6"></circle><path d="m6 10.4 2.7 2.7L14 7.6" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"></path></svg>
      <p><b>Nothing needs attention.</b> <span class="muted">The daemon is ${status.state}, and has run for ${duration(status.uptime_seconds)}.</span></p>
    </div></section>`;
  }
  return html`<section class="card ${isUrgent ? "alert" : ""}" aria-labelledby="attention">
    <header><h2 id="attention">Needs attention</h2><span class="muted">${count(problems.length, "thing")}, worst first. The daemon is ${status.state}, and has run for ${duration(status.uptime_seconds)}.</span></header>
    <ul class="attention">${problems.map(problem)}</ul>
  </section>`;
}

function problem({ kind, severity, message: text, remedy, functions = [] }) {
  const [tone, word] = SEVERITIES[severity] ?? SEVERITIES.warning;
  const [view, query] = PLACES[kind] ?? ["functions", {}];
  const [one] = functions.length === 1 ? functions : [];
  const isList = view === "events" || view === "dead-letters";
  const place = one && !isList ? link("functions", one) : link(view, null, one ? { ...query, function: one } : query);
  return html`<li>
    <span class="badge ${tone}">${word}</span>
    <div><p class="what">${message(text)}</p><p class="muted">${message(remedy)}</p></div>
    <a href=${place}>Look<span class="hidden-text"> at it: ${visible(text)}</span></a>
  </li>`;
}

function tiles({ status, limits, functions, functions_total: total }, series) {
  const { outbox, rates } = status;
  const recent = (name) => series[name]?.slice(-60) ?? [];
  const mean = (name) => {
    const known = recent(name).slice(-10).filter((value) => value !== null);
    return known.reduce((sum, value) => sum + value, 0) / (known.length || 1);
  };
  const [throttled, attempts] = [mean("throttled"), mean("attempts")];
  const parts = ["ready", "waiting", "scheduled"].map(recent);
  const stored = parts[0].map((value, i) => (value === null ? null : parts.reduce((sum, values) => sum + (values[i] ?? 0), 0)));
  const live = outbox.ready + outbox.waiting + outbox.scheduled;
  return html`<section class="card tiles" aria-label="Numbers">
    ${tile("To be delivered", short(live), "", `${short(outbox.ready)} ready, ${short(outbox.waiting)} waiting, ${short(outbox.scheduled)} scheduled`, stored, 1, link("events"))}
    ${tile("Oldest waits", live ? duration(outbox.oldest_age_seconds) : "–", "", live ? `${short(outbox.in_flight)} in flight, ${count(total ?? functions.length, "function")}` : "nothing waits", recent("oldest_age_seconds"), 3, link("functions", null, { sort: "-oldest_age_seconds" }))}
    ${tile("Accepted", rate(rates.accepted_per_second), "/s", `${short(status.totals.accepted)} since the start`, recent("accepted"), 1, link("functions", null, { sort: "-accepted" }))}
    ${tile("Delivered", rate(rates.delivered_per_second), "/s", `${short(status.totals.delivered)} since the start`, recent("delivered"), 2, link("activity"))}
    ${tile("Throttled", percent(throttled, attempts), "", attempts ? `of ${rate(attempts)} attempts/s` : "no attempts just now", recent("throttled"), 3, link("functions", null, { sort: "-throttled" }))}
    ${tile("Dead letters", short(outbox.buried), "", `${short(status.totals.shipped)} shipped since the start`, recent("dead_letters"), 4, link("dead-letters"))}
  </section>`;
}

const tile = (label, value, unit, sub, values, tone, to) => html`<a class="tile" href=${to}>
  <span class="label">${label}</span><span class="value">${value}${unit ? html`<small> ${unit}</small>` : nothing}</span><span class="sub">${sub}</span>${spark(values, tone)}</a>`;

function charts(series, route) {
  const { times } = series;
  const perSecond = (value) => `${rate(value)}/s`;
  const milliseconds = (value) => `${rate(value * 1_000)} ms`;
  const line = (label, name, tone, more) => ({ label, values: series[name] ?? [], tone, ...more });
  const window = windowOf(route);
  /** @type {Omit<import("../chart.js").Model, "times">[]} */
  const shown = [
    { title: "Events a second", say: perSecond, lines: [line("accepted", "accepted", 1), line("delivered", "delivered", 2), line("throttled", "throttled", 3), line("buried", "buried", 4)] },
    { title: "Backlog", say: short, unit: "events", stacked: true, lines: [line("scheduled", "scheduled", 5), line("waiting", "waiting", 3), line("ready", "ready", 1)] },
    { title: "Oldest event", say: duration, unit: "seconds", lines: [line("age", "oldest_age_seconds", 3)] },
    { title: "Attempts in flight", say: short, unit: "events", lines: [line("in flight", "in_flight", 1)] },
    { title: "Commit latency", say: milliseconds, lines: [line("p50", "commit_p50_seconds", 1), line("p99", "commit_p99_seconds", 3)] },
    { title: "Disk", say: bytes, unit: "bytes", lines: [line("store", "disk_bytes", 1)] },
  ];
  const pick = (name, text) => html`<button aria-pressed=${window === name} @click=${() => refine({ window: name })}>${text}</button>`;
  return html`<section class="head" aria-label="Charts"><h2 class="grow">The last ${window === "1h" ? "hour" : "five minutes"}</h2>
      <div class="group">${pick("5m", "5 min")}${pick("1h", "1 h")}</div></section>
    <div class="three">${shown.map((model) => chart({ times, ...model }))}</div>`;
}

function deepest(functions, total) {
  const shown = [...functions].sort((a, b) => urgency(b) - urgency(a) || b.depth - a.depth).slice(0, DEEPEST);
  return html`<section class="card" aria-labelledby="deepest">
    <header><h2 id="deepest" class="grow">Functions, troubled and deepest first</h2>${total > shown.length ? html`<a href="#/functions">All ${number(total)}</a>` : nothing}</header>
    ${shown.length ? html`<div class="scroll"><table>
      <thead><tr><th scope="col">Function</th><th scope="col">State</th><th scope="col" class="n">To deliver</th><th scope="col" class="n">Dead letters</th><th scope="col" class="n">Oldest</th><th scope="col" class="n">In flight</th><th scope="col" class="n">Delivered/min</th><th scope="col" class="n">Failed/min</th><th scope="col"><span class="hidden-text">Actions</span></th></tr></thead>
      <tbody>${repeat(shown, (lane) => lane.function, row)}</tbody></table></div>`
      : html`<div class="empty"><p>No function has events. Applications send them to the ingest listener.</p></div>`}
  </section>`;
}

const urgency = (lane) => (lane.held ? 3 : lane.failing_since ? 2 : lane.paused ? 1 : 0);

const row = (lane) => html`<tr>
  ${functionCell(lane.function)}
  <td>${laneState(lane)}</td>${cell(lane.depth)}${cell(lane.buried, "bad")}
  <td class="n">${duration(lane.oldest_age_seconds)}</td>
  <td class="n">${number(lane.in_flight)}${lane.limit === null ? nothing : html` <span class="muted">of ${number(lane.limit)}</span>`}</td>
  ${cell(lane.delivered_per_minute)}${cell(lane.failed_per_minute, "warn")}
  <td class="n">${pauseButton(lane)}</td></tr>`;

function store({ status: { outbox, version, log_level: level }, limits, at }) {
  const used = limits.bytes_max ? outbox.disk_bytes / limits.bytes_max : 0;
  const full = limits.events_max ? outbox.events / limits.events_max : 0;
  return html`<section class="card" aria-labelledby="store"><header><h2 id="store">Store</h2></header><div class="pad three">
    <dl class="facts"><dt>Events</dt><dd>${number(outbox.events)}${limits.events_max ? html` of ${number(limits.events_max)} ${meter(full, "used of outbox.events_max")}` : nothing}</dd>
      <dt>Remembered keys</dt><dd>${number(outbox.keys)}</dd></dl>
    <dl class="facts"><dt>On disk</dt><dd>${bytes(outbox.disk_bytes)}${limits.bytes_max ? html` of ${bytes(limits.bytes_max)} ${meter(used, "used of outbox.bytes_max")}` : nothing}</dd>
      <dt>Free</dt><dd>${bytes(outbox.disk_free_bytes)}; refuses events at ${bytes(limits.disk_reserve)}</dd></dl>
    <dl class="facts"><dt>Version</dt><dd>${said(version)}</dd><dt>Log level</dt><dd>${said(level)}</dd></dl>
  </div></section>`;
}

export default { title: () => "Overview", load, render };
