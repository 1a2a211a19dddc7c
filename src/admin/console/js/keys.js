// The keyboard, and what the buttons at the top do.

import { html } from "../vendor/lit-html/lit-html.js";
import * as dialog from "./dialog.js";
import { swapZone } from "./format.js";
import { page, repaint } from "./page.js";

const KEYS = [
  ["1 – 7", "the views, from left to right"],
  ["/", "go to the first filter"],
  ["j, k", "next and previous row"],
  ["Enter", "open the row"],
  ["x", "choose the row"],
  ["p", "pause or resume the function of the row, or of the page"],
  ["r", "load again"],
  ["l", "stop or go on loading by itself"],
  ["z", "times in UTC or in your zone"],
  ["?", "this list"],
  ["Esc", "close a dialog, leave a field"],
];

let calls = { load: () => {}, current: () => ({}) };
export const connect = (given) => (calls = given);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = /** @type {HTMLElement} */ (event.target);
  const isTyping = target.closest?.("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape" && isTyping) target.blur();
  if (isTyping || dialog.isOpen() || page.signedOut) return;
  const act = ACTS[event.key] ?? (/^[1-7]$/.test(event.key) ? () => views()[Number(event.key) - 1]?.click() : null);
  if (!act) return;
  event.preventDefault();
  act();
});

/** @returns {HTMLElement|null} */
const one = (selector, within = /** @type {ParentNode} */ (document)) => within.querySelector(selector);

const ACTS = {
  "/": () => one("main input:not([type=checkbox])")?.focus(),
  j: () => step(1),
  k: () => step(-1),
  x: () => one("input[type=checkbox]", row() ?? document.createElement("tr"))?.click(),
  p: () => one("[data-pause]", row() ?? document)?.click(),
  r: () => calls.load(),
  l: () => toggleLive(),
  z: () => zone(),
  "?": () => help(),
};

/** @returns {HTMLElement[]} */
const every = (selector) => [...document.querySelectorAll(selector)];
const views = () => every("nav a");
const rows = () => every("main [data-row]");
const row = () => document.activeElement?.closest?.("tr");

function step(by) {
  const all = rows();
  const at = all.findIndex((stop) => row()?.contains(stop));
  const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1);
  all[next]?.focus();
  all[next]?.scrollIntoView({ block: "nearest" });
}

export function toggleLive() {
  page.live = !page.live;
  repaint();
  calls.load();
}

export function zone() {
  swapZone();
  repaint();
}

export function help() {
  const body = html`<table><thead class="hidden-text"><tr><th scope="col">Key</th><th scope="col">What it does</th></tr></thead>
    <tbody>${KEYS.map(([key, what]) => html`<tr><th scope="row" class="t">${key.split(", ").map((one) => html`<kbd>${one}</kbd> `)}</th><td>${what}</td></tr>`)}</tbody></table>`;
  dialog.show("Keys", body);
}

const THEMES = ["auto", "light", "dark"];
export const themeName = () => localStorage.getItem("sendoff.theme") ?? "auto";

export function theme() {
  localStorage.setItem("sendoff.theme", THEMES[(THEMES.indexOf(themeName()) + 1) % THEMES.length]);
  applyTheme();
  repaint();
}

export function applyTheme() {
  document.documentElement.dataset.theme = themeName();
  // Charts are painted in colours of their own.
  window.dispatchEvent(new Event("themechange"));
}
