// A payload that somebody asked for: as a tree if it is JSON, else as text, else as bytes. Always as text, never as markup.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { copy } from "./actions.js";
import { visible } from "./format.js";
import { page, repaint } from "./page.js";

/** What is put into the page at once: a browser is slow with a line of a megabyte. */
const CHARS_MAX = 64 * 1024;
const BYTES_MAX = 4 * 1024;
/** Members of one object or array. */
const MEMBERS_MAX = 200;
const OPEN_DEPTH = 2;

export function shown(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const text = decoded(bytes);
  if (text === null) return html`<p class="muted">Not text. The first bytes:</p><pre class="quoted" tabindex="0">${hex(bytes.slice(0, BYTES_MAX))}</pre>`;
  const json = parsed(text);
  const isRaw = page.memory.raw || json === undefined;
  const swap = () => {
    page.memory.raw = !page.memory.raw;
    repaint();
  };
  return html`<div class="actions">
      ${json === undefined ? html`<span class="muted">not JSON</span>` : html`<button aria-pressed=${Boolean(isRaw)} @click=${swap}>As it is</button>`}
      <button @click=${() => copy(text, "The payload")}>Copy</button></div>
    <div class="quoted" tabindex="0" role="region" aria-label="Payload">${isRaw ? raw(text) : html`<div class="tree mono">${member(undefined, json, 0)}</div>`}</div>`;
}

function decoded(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    return null;
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const hex = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");

function raw(text) {
  const isLong = text.length > CHARS_MAX;
  return html`<pre><bdi>${visible(text.slice(0, CHARS_MAX))}</bdi></pre>${isLong ? html`<p class="muted">The first 64 KiB. “Copy” copies all of it.</p>` : nothing}`;
}

function member(key, value, depth) {
  const name = key === undefined ? nothing : html`<span class="key"><bdi>${visible(key)}</bdi></span>: `;
  if (value === null || typeof value !== "object") return html`<div class="leaf">${name}<bdi>${visible(JSON.stringify(value)).slice(0, CHARS_MAX)}</bdi></div>`;
  const all = Object.entries(value);
  const isList = Array.isArray(value);
  const size = isList ? `[${all.length}]` : `{${all.length}}`;
  if (!all.length) return html`<div class="leaf">${name}${isList ? "[]" : "{}"}</div>`;
  return html`<details ?open=${depth < OPEN_DEPTH}><summary>${name}<span class="muted">${size}</span></summary>
    ${depth < 64 ? all.slice(0, MEMBERS_MAX).map(([inner, of]) => member(inner, of, depth + 1)) : html`<div class="leaf muted">deeper parts: see “As it is”</div>`}
    ${all.length > MEMBERS_MAX ? html`<div class="leaf muted">and ${all.length - MEMBERS_MAX} more: see “As it is”</div>` : nothing}</details>`;
}
