// What the daemon runs with, and the two things that change without a restart: its log level and readiness.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import { live } from "../../vendor/lit-html/directives/live.js";
import * as actions from "../actions.js";
import * as api from "../api.js";
import { count, duration, moment, said, settingValue, visible } from "../format.js";
import { may, page, refine } from "../page.js";
import { field } from "../table.js";

const LEVELS = ["error", "warn", "info", "debug", "trace"];

async function load(_, signal) {
  const [config, level, snapshot] = await Promise.all([api.config("", signal), api.logLevel(signal), api.snapshot(signal)]);
  page.snapshot = snapshot;
  return { config, level: level.level, status: snapshot.status };
}

function render({ config, level, status }, { query }) {
  return html`
    <div class="head"><h1 class="grow">Configuration</h1></div>
    <div class="two">${daemon(status)}${changes(level, status, config.entries)}</div>
    ${entries(config.entries, query)}`;
}

function daemon(status) {
  const { me } = page;
  return html`<section class="card" aria-labelledby="daemon"><header><h2 id="daemon">Daemon</h2></header><div class="pad"><dl class="facts">
    <dt>State</dt><dd>${said(status.state)}</dd>
    <dt>Version</dt><dd>${said(me.version)}</dd>
    <dt>Machine</dt><dd>${said(me.host)}</dd>
    <dt>Started</dt><dd>${moment(me.started_at)}; up for ${duration(status.uptime_seconds)}</dd>
    <dt>You are</dt><dd>${said(me.name)}${me.proof === "none" ? "" : `, by ${me.proof}`}; you may ${me.rights.join(", ")}${me.read_only ? html`. <b>This daemon is read-only</b> (<code>auth.read_only</code>)` : nothing}</dd>
    ${me.prefix ? html`<dt>Prefix</dt><dd><code>${visible(me.prefix)}</code></dd>` : nothing}
  </dl></div></section>`;
}

function changes(level, status, all) {
  const target = all.find((entry) => entry.key === "handoff.to")?.value ?? "";
  const isDraining = status.state === "draining on request";
  const isPlain = LEVELS.includes(level);
  return html`<section class="card" aria-labelledby="changes"><header><h2 id="changes">Until the next restart</h2></header><div class="pad"><dl class="facts">
    <dt>Log level</dt><dd>${may("operate")
      ? html`<select aria-label="Log level" .value=${live(level)} @change=${(event) => actions.setLogLevel(event.target.value)}>
          ${isPlain ? nothing : html`<option value=${level}>${visible(level)}</option>`}${LEVELS.map((word) => html`<option ?selected=${word === level}>${word}</option>`)}</select>`
      : said(level)}</dd>
    ${target ? html`<dt>Hand-off</dt><dd>Events may be handed over to ${said(target)}, by a drain.</dd>` : nothing}
    <dt>Readiness</dt><dd>${isDraining ? "It says that it is not ready: draining on request." : status.ready ? "It says that it is ready." : html`It says that it is not ready: ${said(status.state)}.`}
      ${may("operate") ? (isDraining ? html`<button @click=${actions.endDrain}>End the drain</button>` : html`<button ?disabled=${!status.ready} @click=${() => actions.drain(target)}>Drain …</button>`) : nothing}</dd>
  </dl></div></section>`;
}

function entries(all, query) {
  const word = (query.key ?? "").toLowerCase();
  const onlySet = query.set === "true";
  const shown = all.filter((entry) => entry.key.toLowerCase().includes(word) && (!onlySet || entry.origin !== "default"));
  return html`<section class="card"><header class="filters">${field("key", "Key contains", "backoff", "wide")}
      <label class="check"><input type="checkbox" .checked=${live(onlySet)} @change=${(event) => refine({ set: event.target.checked ? "true" : "" })}> only what somebody set</label></header>
    ${shown.length ? html`<div class="scroll" tabindex="0" role="region" aria-label="Values"><table><thead><tr><th scope="col">Key</th><th scope="col">Value</th><th scope="col">From</th><th scope="col">A change takes</th></tr></thead>
      <tbody>${shown.map((entry) => html`<tr><th scope="row" class="mono">${visible(entry.key)}</th><td class="mono name">${settingValue(entry.value)}</td><td class=${entry.origin === "default" ? "muted" : ""}>${visible(entry.origin)}</td><td class="muted">${entry.live ? "a reload (SIGHUP)" : "a restart"}${entry.needs_restart ? html` <b class="warn">and has one: the file or the environment says something else by now</b>` : nothing}</td></tr>`)}</tbody></table></div>`
    : html`<div class="empty"><p>No key fits.</p></div>`}
    <div class="foot"><span>${count(shown.length, "value")}. Secrets are never shown, only where they come from.</span></div></section>`;
}

export default { title: () => "Configuration", every: () => 10_000, load, render };
