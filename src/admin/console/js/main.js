// Starts the page, and keeps it current: address -> view -> load -> render, and again while somebody looks.

import { html, nothing, render } from "../vendor/lit-html/lit-html.js";
import * as api from "./api.js";
import * as dialog from "./dialog.js";
import { clockOffset, clockTime, duration, isUtc, swapZone, visible } from "./format.js";
import * as keys from "./keys.js";
import { connect, page, repaint } from "./page.js";
import * as router from "./router.js";
import * as toasts from "./toasts.js";
import activity from "./views/activity.js";
import bulk from "./views/bulk.js";
import configuration from "./views/configuration.js";
import deadLetters from "./views/dead-letters.js";
import event from "./views/event.js";
import events from "./views/events.js";
import oneFunction from "./views/function.js";
import functions from "./views/functions.js";
import overview from "./views/overview.js";
import signIn from "./views/sign-in.js";

/** The views, in the order of their names at the top. `one` shows one thing of a list. */
const VIEWS = [
  { name: "", label: "Overview", list: overview },
  { name: "functions", label: "Functions", list: functions, one: oneFunction },
  { name: "events", label: "Events", list: events, one: event },
  { name: "dead-letters", label: "Dead letters", list: deadLetters, one: event },
  { name: "bulk", label: "Bulk jobs", list: bulk },
  { name: "activity", label: "Activity", list: activity },
  { name: "configuration", label: "Configuration", list: configuration },
];

const UNKNOWN = { title: () => "No such view", load: async () => ({}), render: () => html`<h1>No such view</h1><p>The console has no view of this name. <a href="#/">Go to the overview</a>.</p>` };

/** The shortest and the longest wait between two questions after failures. */
const RETRY_MS = [2_000, 10_000];

let timer = 0;
let asking = null;
let failures = 0;

/**
 * @typedef {object} View
 * @property {(route: router.Route) => string} title
 * @property {(route: router.Route, signal: AbortSignal) => Promise<any>} load asks the API
 * @property {(data: any, route: router.Route) => any} render
 * @property {(data: any) => number} [every] after how many ms to load again; 0: not by itself
 * @property {(error: api.Refused, route: router.Route) => any} [failed] what to show instead of an error
 */

/** @returns {View} */
function current() {
  const { view, id } = page.route;
  const found = VIEWS.find((other) => other.name === view);
  return (id === null ? found?.list : found?.one) ?? UNKNOWN;
}

/** Loads the data of the view, shows it, and sets when to do so again. */
async function load() {
  clearTimeout(timer);
  asking?.abort();
  const mine = new AbortController();
  asking = mine;
  const { route } = page;
  const view = current();
  try {
    page.me ??= await api.whoami();
    const data = await view.load(route, mine.signal);
    if (mine.signal.aborted) return;
    Object.assign(page, { data, error: null, isBusy: false, heardAt: Date.now(), signedOut: false });
    failures = 0;
    if (!page.snapshot) lookAround();
  } catch (error) {
    if (mine.signal.aborted) return;
    if (error.status === undefined) throw error;
    failures += 1;
    Object.assign(page, { error, isBusy: false });
    if (error.status === 401) Object.assign(page, { signedOut: true, me: null, data: null });
  }
  repaint();
  again(view);
}

function again(view) {
  clearTimeout(timer);
  if (!page.live || document.hidden || page.signedOut) return;
  const every = view.every?.(page.data) ?? 2_000;
  const wait = page.error ? Math.min(RETRY_MS[0] * 2 ** (failures - 1), RETRY_MS[1]) : every;
  if (wait > 0) timer = setTimeout(load, wait);
}

/** The numbers beside the names of views, for those views that do not load them. */
async function lookAround() {
  if (document.hidden || !page.me || page.signedOut || current() === overview) return;
  try {
    page.snapshot = await api.snapshot();
    repaint();
  } catch {
    // The view itself tells that the daemon does not answer.
  }
}

function arrive() {
  const before = page.route;
  page.route = router.parse(location.hash);
  const isOther = before.view !== page.route.view || before.id !== page.route.id;
  // The same view with another filter shows what it has until the answer comes, and keeps the focus.
  Object.assign(page, { isBusy: true, error: null });
  if (isOther) Object.assign(page, { data: null, memory: {} });
  page.chosen.clear();
  if (dialog.isOpen()) dialog.close();
  repaint();
  if (isOther) {
    window.scrollTo(0, 0);
    document.querySelector("main")?.focus();
    // On a phone the names of views are wider than the screen.
    setTimeout(() => document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" }));
  }
  load();
}

// One paint for all changes of a turn.
let isDue = false;
function paint() {
  if (isDue) return;
  isDue = true;
  queueMicrotask(() => {
    isDue = false;
    render(shell(), document.getElementById("app"));
    dialog.settle();
  });
}

function shell() {
  document.title = `${page.signedOut ? "Sign in" : visible(current().title(page.route))} · sendoff`;
  if (page.signedOut) return html`${signIn(start)}${toasts.render()}`;
  return html`
    <a class="skip" href="#main" @click=${skip}>Skip to the content</a>
    <header class="top"><div>${brand()}${navigation()}${tools()}</div></header>
    <main id="main" tabindex="-1" aria-busy=${page.isBusy}>${content()}</main>
    ${dialog.render()} ${toasts.render()}
  `;
}

function skip(event) {
  event.preventDefault();
  document.querySelector("main").focus();
}

function brand() {
  const { me } = page;
  return html`<a class="brand" href="#/" title="sendoff ${me?.version ?? ""}">
    <svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="7" fill="#2b59c3"></rect><path d="M7 16h15m-6-7 7 7-7 7" fill="none" stroke="#fff" stroke-width="3.4" stroke-linecap="round" stroke-linejoin="round"></path></svg>
    sendoff ${me?.host ? html`<span class="muted">${visible(me.host)}</span>` : nothing}
  </a>`;
}

function navigation() {
  const { snapshot, route } = page;
  const problems = snapshot?.status.problems.filter((problem) => problem.severity !== "info").length ?? 0;
  const buried = snapshot?.status.outbox.buried ?? 0;
  const counts = { "": [problems, "bad", "to look at"], "dead-letters": [buried, "", "in the store"] };
  return html`<nav aria-label="Views">
    ${VIEWS.map(({ name, label }) => {
      const [count, tone, what] = counts[name] ?? [0];
      return html`<a href=${router.link(name)} aria-current=${name === route.view ? "page" : nothing}>${label}${count
        ? html` <span class="count ${tone}">${count > 9_999 ? "9,999+" : count.toLocaleString("en")}<span class="hidden-text"> ${what}</span></span>`
        : nothing}</a>`;
    })}
  </nav>`;
}

function tools() {
  const { me } = page;
  const skew = clockOffset();
  const rights = me?.read_only ? "read-only" : me?.rights.includes("operate") ? "operator" : "reader";
  return html`<div class="tools">
    ${skew ? html`<span class="warn wide" title="Ages are told by the daemon's clock">daemon's clock ${duration(Math.abs(skew) / 1_000)} ${skew > 0 ? "ahead" : "behind"}</span>` : nothing}
    ${me ? html`<span class="wide" title="Who the daemon takes you for, and what you may do">${visible(me.name)}, ${rights}</span>` : nothing}
    <button class="plain" @click=${keys.toggleLive} aria-pressed=${page.live} title="Load again by itself (l)">${liveness()}</button>
    <button class="plain" @click=${keys.zone} title="Times in UTC or in your zone (z)">${isUtc() ? "UTC" : "local time"}</button>
    <button class="plain narrow-off" @click=${keys.theme} title="Light, dark, or as the system"><span class="roomy">theme: </span>${keys.themeName()}</button>
    <button class="plain narrow-off" @click=${keys.help} title="Keys (?)" aria-label="Keys">?</button>
    ${api.hasToken() ? html`<button class="plain" @click=${leave}>Sign out</button>` : nothing}
  </div>`;
}

function liveness() {
  if (page.error && page.error.status !== 404) return html`<span class="live lost">no answer</span>`;
  return page.live && current().every?.(page.data) !== 0 ? html`<span class="live">live</span>` : html`<span class="live off">paused</span>`;
}

function content() {
  const { error, data, heardAt } = page;
  const view = current();
  const old = error && data ? html`<p class="strip" role="alert">${visible(error.message)}. What you see is of ${clockTime(heardAt)}; the page keeps trying.</p>` : nothing;
  if (data !== null) return html`${old}${view.render(data, page.route)}`;
  const heading = html`<h1 class="hidden-text">${visible(view.title(page.route))}</h1>`;
  if (!error) return html`${heading}<p class="note">Loading …</p>`;
  return view.failed?.(error, page.route) ?? html`${heading}<p class="strip" role="alert">${visible(error.message)}.${error.status ? nothing : html` The page keeps trying. On the daemon's machine, <code>sendoff status</code> says whether it runs.`}</p>`;
}

function start(token) {
  if (token !== undefined) api.signIn(token);
  Object.assign(page, { me: null, error: null, isBusy: true });
  return load();
}

function leave() {
  api.signOut();
  Object.assign(page, { me: null, data: null, snapshot: null, memory: {} });
  load();
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : load()));
window.addEventListener("hashchange", arrive);
connect({ paint, load });
dialog.onPaint(paint);
toasts.onPaint(paint);
keys.connect({ load, current });
keys.applyTheme();
document.getElementById("app").replaceChildren();
paint();
load();
setInterval(lookAround, 10_000);
