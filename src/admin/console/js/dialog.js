// Dialogs. A dialog that acts on many events first asks the daemon what it would do, and says so.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { live } from "../vendor/lit-html/directives/live.js";
import { visible } from "./format.js";

/**
 * @typedef {object} Question
 * @property {any} title
 * @property {string} button what the button says
 * @property {boolean} [danger]
 * @property {(values: Record<string, any>) => Promise<Plan>} check asks the daemon what would happen
 * @property {(values: Record<string, any>, plan: Plan) => Promise<void>} run
 * @property {(values: Record<string, any>, set: (changes: object, isNewPlan?: boolean) => void) => any} [fields]
 * @property {Record<string, any>} [values] of the fields, at the start
 *
 * @typedef {object} Plan
 * @property {any} text what will happen
 * @property {any} [more]
 * @property {string} [word] what must be typed first
 * @property {number} [matched] how many a dry run has found
 * @property {boolean} [nothing] there is nothing to do
 */

let open = null;
let paint = () => {};
let asked = 0;

export const onPaint = (call) => (paint = call);
export const isOpen = () => open !== null;

/** @param {Question} question */
export function ask(question) {
  open = { question, values: { ...question.values }, plan: null, typed: "", failed: null, busy: false };
  plan();
}

/** Shows something that asks nothing. */
export function show(title, body) {
  open = { title, body };
  paint();
}

export function close() {
  open = null;
  asked += 1;
  paint();
}

async function plan() {
  const mine = ++asked;
  open.plan = null;
  open.failed = null;
  paint();
  let [found, failed] = [null, null];
  try {
    found = await open.question.check(open.values);
  } catch (error) {
    failed = error;
  }
  // The dialog may have been closed, or asked again, meanwhile.
  if (mine !== asked || !open) return;
  Object.assign(open, { plan: found, failed });
  paint();
}

function set(changes, isNewPlan = true) {
  Object.assign(open.values, changes);
  if (isNewPlan) plan();
  else paint();
}

async function submit(event) {
  event.preventDefault();
  const dialog = open;
  if (!isReady(dialog)) return;
  dialog.busy = true;
  paint();
  try {
    await dialog.question.run(dialog.values, dialog.plan);
    if (open === dialog) close();
  } catch (error) {
    Object.assign(dialog, { failed: error, busy: false });
    // What was asked may no longer hold: ask again, and say why.
    if (error.status === 409 && open === dialog) {
      await plan();
      dialog.failed ??= error;
    }
    paint();
  }
}

function isReady(dialog) {
  const { plan, typed, busy } = dialog;
  return Boolean(plan) && !plan.nothing && !busy && (!plan.word || typed.trim() === plan.word);
}

/** Shows the dialog that lit-html has rendered; called after each paint. */
export function settle() {
  const element = document.querySelector("dialog");
  if (!element) return;
  if (open && !element.open) element.showModal();
  if (!open && element.open) element.close();
}

export function render() {
  return html`<dialog aria-labelledby="dialog-title" @close=${() => open && close()}>${open ? content() : nothing}</dialog>`;
}

function content() {
  if (!open.question) {
    return html`<div>
      <h2 id="dialog-title">${open.title}</h2>
      ${open.body}
      <div class="actions"><button @click=${close} autofocus>Close</button></div>
    </div>`;
  }
  const { question, values, plan, failed, typed, busy } = open;
  return html`<form @submit=${submit} autocomplete="off">
    <h2 id="dialog-title">${question.title}</h2>
    ${question.fields?.(values, set) ?? nothing}
    <div aria-live="polite">
      ${plan ? html`<p class="what">${plan.text}</p>` : failed ? nothing : html`<p class="muted">Asking the daemon what would happen …</p>`}
      ${plan?.more ?? nothing}
      ${failed ? html`<p class="bad" role="alert">${visible(failed.message)}</p>` : nothing}
    </div>
    ${plan?.word
      ? html`<label>
          <span>Type <b class="mono">${visible(plan.word)}</b> to confirm</span>
          <input type="text" name="word" spellcheck="false" .value=${live(typed)} @input=${(event) => {
            open.typed = event.target.value;
            paint();
          }}>
        </label>`
      : nothing}
    <div class="actions">
      <button type="button" @click=${close}>Go back</button>
      <button class="main ${question.danger ? "danger" : ""}" ?disabled=${!isReady(open)}>${busy ? "Working …" : question.button}</button>
    </div>
  </form>`;
}
