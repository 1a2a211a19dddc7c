// Numbers, times and untrusted text, as the page writes them. Pure but for the clock and the zone.

import { html, nothing } from "../vendor/lit-html/lit-html.js";

/** What the daemon's clock is ahead of this browser's, in ms. Ages are told by the daemon's clock. */
let offset = 0;

/** Times of day are written in UTC, or in the zone of this browser. */
let utc = localStorage.getItem("sendoff.zone") === "utc";

export const now = () => Date.now() + offset;
export const clockOffset = () => offset;
export const isUtc = () => utc;

/** @param {number} daemon the daemon's time in ms, known to `grain` ms */
export function heardTime(daemon, grain = 1) {
  const found = daemon - Date.now();
  // An answer takes time, so a small difference says nothing.
  offset = Math.abs(found) > 2_000 + grain ? found : 0;
}

export function swapZone() {
  utc = !utc;
  localStorage.setItem("sendoff.zone", utc ? "utc" : "local");
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

export const number = (n) => (n === null || n === undefined ? "–" : whole.format(n));
/** For places where a million must fit: 1.04M. */
export const short = (n) => (n < 100_000 ? whole.format(n) : compact.format(n));
export const rate = (n) => (n === 0 ? "0" : n < 0.1 ? "< 0.1" : n < 100 ? tenths.format(n) : whole.format(n));
export const percent = (part, all) => (all > 0 ? `${tenths.format((100 * part) / all)} %` : "–");
export const count = (n, one, many = `${one}s`) => `${number(n)} ${n === 1 ? one : many}`;

export function bytes(n) {
  for (const [unit, size] of /** @type {[string, number][]} */ ([["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])) {
    if (n >= size) return `${tenths.format(n / size)} ${unit}`;
  }
  return `${whole.format(n)} B`;
}

/** 42 s, 12 min, 3 h 20 min, 4 d 2 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const s = Math.max(0, Math.round(seconds));
  const two = (a, ua, b, ub) => (b ? `${a} ${ua} ${b} ${ub}` : `${a} ${ua}`);
  if (s < 90) return `${s} s`;
  if (s < 5_400) return `${Math.round(s / 60)} min`;
  if (s < 86_400) return two(Math.floor(s / 3_600), "h", Math.round((s % 3_600) / 60) % 60, "min");
  return two(Math.floor(s / 86_400), "d", Math.floor((s % 86_400) / 3_600), "h");
}

export function clockTime(ms) {
  const date = new Date(ms);
  if (Number.isNaN(date.getTime())) return "–";
  if (utc) return `${date.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  const pad = (n) => String(n).padStart(2, "0");
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  return `${day} ${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
}

/** Only the time of day, for charts. */
export const timeOfDay = (ms, seconds = true) => clockTime(ms).slice(11, seconds ? 19 : 16);

function relative(ms) {
  const ago = (now() - ms) / 1_000;
  if (Math.abs(ago) < 1.5) return "now";
  return ago > 0 ? `${duration(ago)} ago` : `in ${duration(-ago)}`;
}

/** A time in a list: how long ago; the time itself on hover. */
export function when(text) {
  if (!text) return "–";
  const ms = Date.parse(text);
  return html`<time datetime=${text} title=${clockTime(ms)}>${relative(ms)}</time>`;
}

/** A time where there is room: both. */
export function moment(text) {
  if (!text) return "–";
  const ms = Date.parse(text);
  return html`<time datetime=${text}>${clockTime(ms)} <span class="muted">(${relative(ms)})</span></time>`;
}

// Control characters, and those that turn the direction of text or that nobody sees: a name must not look like another.
const HIDDEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb]/gu;
const escaped = (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;

/** Text of somebody else, with what is hidden in it made visible. */
export const visible = (text) => String(text ?? "").replace(HIDDEN, (c) => (c === "\t" ? "\\t" : escaped(c)));

/** The same, apart from the direction of the text around it. */
export const said = (text) => html`<bdi>${visible(text)}</bdi>`;

/** A function's name: region and account in grey. */
export function functionName(name) {
  const text = visible(name);
  const at = text.lastIndexOf("/") + 1;
  return html`<bdi>${at ? html`<span class="prefix">${text.slice(0, at)}</span>` : nothing}${text.slice(at)}</bdi>`;
}

/** A message of the daemon, with what stands in backticks as code. */
export function message(text) {
  const parts = visible(text).split("`");
  return html`<bdi>${parts.map((part, i) => (i % 2 ? html`<code>${part}</code>` : part))}</bdi>`;
}

/** A number in a table, grey if it is zero. */
export const cell = (n, extra = "") => html`<td class="n ${n ? extra : "zero"}">${number(n)}</td>`;

/** A value of the configuration. */
export function settingValue(of) {
  if (of === null || of === "") return html`<span class="zero">–</span>`;
  const one = (part) => (typeof part === "object" ? JSON.stringify(part) : part);
  return Array.isArray(of) ? of.map((part) => html`<div>${visible(one(part))}</div>`) : said(one(of));
}

const WORDS = { "in-flight": "in flight" };
/**
 * A state: a shape and a word.
 * @param {string} word
 * @param {any} [more]
 */
export const state = (word, more = "") =>
  html`<span class="state ${word}">${WORDS[word] ?? word}${more ? html` <span class="muted">${more}</span>` : nothing}</span>`;

export const lastError = (error) => (error ? [error.status || null, error.code].filter(Boolean).join(" ") : "");
