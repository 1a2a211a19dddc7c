// Short answers in the corner: what the daemon said to an action. They are read out by screen readers.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";

const SHOWN_MS = 8_000;
const SHOWN_MAX = 4;

let shown = [];
let last = 0;
let paint = () => {};

export const onPaint = (call) => (paint = call);

/** @param {any} text @param {{undo?: () => void}} [more] */
export function tell(text, more = {}) {
  const toast = { id: ++last, text, ...more };
  add(toast);
  setTimeout(() => remove(toast), SHOWN_MS);
}

/** A failure stays until somebody closes it. */
export function complain(text) {
  add({ id: ++last, text, bad: true });
}

function add(toast) {
  shown = [...shown, toast].slice(-SHOWN_MAX);
  paint();
}

function remove(toast) {
  shown = shown.filter((other) => other.id !== toast.id);
  paint();
}

export function render() {
  return html`<div class="toasts" role="status" aria-live="polite">${repeat(shown, (toast) => toast.id, one)}</div>`;
}

function one(toast) {
  const undo = () => {
    remove(toast);
    toast.undo();
  };
  return html`<div class="toast ${toast.bad ? "bad" : ""}">
    <p>${toast.text}</p>
    ${toast.undo ? html`<button class="link" @click=${undo}>Undo</button>` : nothing}
    <button class="plain" aria-label="Close this message" @click=${() => remove(toast)}>✕</button>
  </div>`;
}
