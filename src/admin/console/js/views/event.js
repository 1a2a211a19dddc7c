// One event or dead letter: where it is on its way, what the last attempt said, and what can be done.

import { html, nothing } from "../../vendor/lit-html/lit-html.js";
import * as actions from "../actions.js";
import * as api from "../api.js";
import { bytes, clockTime, count, functionName, lastError, moment, now, number, said, state, visible, when } from "../format.js";
import { may, page, repaint } from "../page.js";
import { shown as payloadShown } from "../payload.js";
import { link } from "../router.js";
import { complain } from "../toasts.js";
import { outcomes } from "./activity.js";

async function load({ id }, signal) {
  const event = await api.event(id, signal);
  const letter = event.state === "buried" ? await api.letter(id, signal).catch(() => null) : null;
  const recent = await api.recent({ function: event.function, limit: 200 }, signal);
  return { event, letter, outcomes: recent.outcomes.filter((outcome) => outcome.id === id) };
}

function render({ event, letter, outcomes: own }, { id }) {
  return html`
    <div class="head"><a href="#/events">Events</a><h1 class="mono">${visible(id)}</h1>
      <button class="plain" @click=${() => actions.copy(id, "The id")}>copy</button>
      <span class="grow"></span>${buttons(event, letter)}</div>
    <div class="two">
      <section class="card" aria-labelledby="way"><header><h2 id="way">Its way</h2></header><div class="pad">${way(event, letter)}</div></section>
      <section class="card" aria-labelledby="facts"><header><h2 id="facts">Facts</h2></header><div class="pad">${facts(event, letter)}</div></section>
    </div>
    ${event.last_error ? error(event) : nothing}
    ${event.state === "done" ? nothing : payload(event)}
    ${own.length ? html`<section class="card" aria-labelledby="outcomes"><header><h2 id="outcomes">Outcomes that the daemon remembers</h2></header>${outcomes(own, true)}</section>` : nothing}`;
}

function buttons(event, letter) {
  if (!may("operate") || event.state === "done") return nothing;
  const { id, function: name, state: word, in_flight: isBusy } = event;
  if (word === "buried") {
    return html`<div class="actions"><button class="main" ?disabled=${letter?.shipping} @click=${() => actions.redrive(id)}>Redrive</button>
      <button class="danger" ?disabled=${letter?.shipping} @click=${() => actions.purgeLetter(id, name)}>Purge …</button></div>`;
  }
  return html`<div class="actions"><button class="main" ?disabled=${isBusy || word === "ready"} @click=${() => actions.attempt(id)}>Attempt now</button>
    <button class="danger" ?disabled=${isBusy} @click=${() => actions.cancel(id, name)}>Cancel …</button></div>`;
}

const ENDS = {
  delivered: ["ok", "Delivered"], shipped: ["bad", "Shipped to its dead-letter queue"], purged: ["bad", "Purged"],
  cancelled: ["bad", "Cancelled"], redriven: ["ok", "Redriven"],
  "handed-over": ["ok", "Handed over"],
};

function way(event, letter) {
  const { state: word, end } = event;
  const step = (tone, text, more) => html`<li class=${tone}><b>${text}</b>${more ? html`<div class="muted">${more}</div>` : nothing}</li>`;
  return html`<ol class="timeline">
    ${step("ok", "Accepted", moment(event.accepted_at))}
    ${event.deliver_at ? step("", "Scheduled", html`for ${moment(event.deliver_at)}`) : nothing}
    ${event.attempts ? step(event.last_error && word !== "done" ? "bad" : "", count(event.attempts, "attempt"), html`${number(event.charged)} charged against attempts_max${event.last_error ? html`; the last that failed: ${said(lastError(event.last_error))}, ${moment(event.last_error.at)}` : nothing}`) : word === "done" ? nothing : step("", "Not attempted yet")}
    ${event.in_flight ? step("next", word === "buried" ? "On its way to its queue right now" : "Being attempted right now") : nothing}
    ${word === "buried" ? step("bad", html`Buried: ${said(event.reason ?? "given up")}`, letter ? html`${moment(letter.buried_at)}${letter.unshippable ? html`. No queue can take it: ${said(letter.unshippable)}` : nothing}` : nothing) : nothing}
    ${end ? step(ENDS[end.outcome]?.[0] ?? "", endWords(end), endMore(end)) : nothing}
    ${word !== "buried" && word !== "done" && !event.in_flight ? step("next", isDue(event) ? "Due now" : "Next attempt", isDue(event) ? "it waits for its turn, or for what its function waits for" : moment(event.due)) : nothing}
    ${event.expires_at && word !== "done" && word !== "buried" ? step("next", "Expires", moment(event.expires_at)) : nothing}
  </ol>`;
}

const isDue = ({ state: word, due }) => word === "ready" || Date.parse(due) <= now();

const endWords = (end) => (end.outcome === "delivered" && end.confirmed ? "Executed without an error" : ENDS[end.outcome]?.[1] ?? visible(end.outcome));

const endMore = (end) => html`${moment(end.at)}
  ${end.by ? html` by ${said(end.by)}` : nothing}
  ${end.outcome === "delivered" && !end.confirmed ? html`: Lambda's own queue has it` : nothing}
  ${end.to ? html` to <code>${visible(end.to)}</code>, under the same id` : nothing}
  ${end.message_id ? html`, message <code>${visible(end.message_id)}</code>` : nothing}
  ${end.new_id ? html`, as <a class="mono" href=${link("events", end.new_id)}>${visible(end.new_id)}</a>` : nothing}`;

function facts(event, letter) {
  const request = event.end?.request_id ?? event.last_error?.request_id;
  return html`<dl class="facts">
    <dt>State</dt><dd>${state(event.state)}${event.in_flight ? html` ${state("in-flight")}` : nothing}</dd>
    <dt>Function</dt><dd><a href=${link("functions", event.function)}>${functionName(event.function)}</a></dd>
    <dt>Event id</dt><dd>the client has it as <code>x-amzn-RequestId</code> of its answer</dd>
    <dt>Attempts</dt><dd>${number(event.attempts)}, ${number(event.charged)} charged</dd>
    ${event.redrives ? html`<dt>Redriven</dt><dd>${count(event.redrives, "time")} before</dd>` : nothing}
    <dt>Payload</dt><dd>${event.payload_bytes === null ? "gone" : bytes(event.payload_bytes)}</dd>
    ${letter?.unshippable ? html`<dt>Unshippable</dt><dd class="bad">${said(letter.unshippable)}</dd>` : nothing}
    ${request ? html`<dt>Lambda request</dt><dd><code>${visible(request)}</code> <button class="link" @click=${() => actions.copy(insights(request), "The query")}>copy a Logs Insights query</button></dd>` : nothing}
  </dl>`;
}

/** Finds the log lines of a request in CloudWatch Logs Insights. */
const insights = (request) => `fields @timestamp, @message\n| filter @requestId = "${request}"\n| sort @timestamp asc`;

function error({ last_error: { at, status, code, message } }) {
  return html`<section class="card" aria-labelledby="error"><header><h2 id="error">Last error</h2><b class="bad">${said([status || "no answer", code].filter(Boolean).join(" "))}</b><span class="muted">${moment(at)}; text from the function, or from what stands between</span></header>
    <div class="pad">${message ? html`<pre class="quoted" tabindex="0"><bdi>${visible(message)}</bdi></pre>` : html`<p class="muted">It said nothing more.</p>`}</div></section>`;
}

function payload({ id, payload_bytes: size }) {
  const kept = page.memory.payload;
  const show = async () => {
    try {
      page.memory.payload = (await api.payload(id)).payload_base64;
    } catch (failed) {
      complain(visible(failed.message));
    }
    repaint();
  };
  const hide = () => {
    delete page.memory.payload;
    repaint();
  };
  return html`<section class="card" aria-labelledby="payload"><header><h2 id="payload">Payload</h2><span class="muted grow">${bytes(size)}</span>
      ${kept !== undefined ? html`<button @click=${hide}>Hide it</button>` : may("payloads") ? html`<button @click=${show}>Show the payload</button>` : nothing}</header>
    ${kept !== undefined ? html`<div class="pad">${payloadShown(kept)}</div>` : html`<div class="pad"><p class="muted">${may("payloads") ? "It is not loaded before you ask. The daemon writes into its audit that you saw it." : "You may not see payloads. An operator needs payloads = true in the configuration for that."}</p></div>`}
  </section>`;
}

function failed(error, { id }) {
  if (error.status !== 404) return undefined;
  return html`<div class="head"><a href="#/events">Events</a><h1 class="mono">${visible(id)}</h1></div>
    <section class="card"><div class="pad"><p><b>The daemon does not have this event.</b></p>
      <p>It left the store longer ago than the daemon remembers (<code>history.keep</code>, <code>history.bytes_max</code>), or this daemon never accepted it.</p>
      <p class="muted">The time in the id: ${clockTime(Number.parseInt(id.replaceAll("-", "").slice(0, 12), 16))}. Look for the id in the logs of the daemon and of the function.</p></div></section>`;
}

export default { title: ({ id }) => `Event …${visible(id).slice(-10)}`, every: () => (page.data?.event.state === "done" || page.error?.status === 404 ? 0 : 2_000), load, render, failed };
