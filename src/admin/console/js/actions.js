// What an operator does. Each action shows the daemon's answer; what touches many events asks first.

import { html, nothing } from "../vendor/lit-html/lit-html.js";
import * as api from "./api.js";
import { ask } from "./dialog.js";
import { bytes, clockTime, count, duration, number, said, visible, when } from "./format.js";
import { page, reload, repaint } from "./page.js";
import { link } from "./router.js";
import { complain, tell } from "./toasts.js";

/** Above so many events a number must be typed. */
const TYPED_FROM = 100;

/** Does one thing at once, tells the answer, and loads the view again. */
async function atOnce(doing, told) {
  try {
    const answer = await doing();
    told(answer);
  } catch (error) {
    complain(visible(error.message));
  }
  reload();
}

const untilHeld = (held) => (held ? html` It is still held until ${when(held.until)}: ${said(held.reason)}` : nothing);

export const pause = (name) =>
  atOnce(
    () => api.pause(name),
    () => tell(html`${said(name)} is paused. Its events are kept, and still expire.`, { undo: () => resume(name) }),
  );

export const resume = (name) =>
  atOnce(
    () => api.resume(name),
    ({ held }) => tell(html`${said(name)} is resumed.${untilHeld(held)}`, { undo: () => pause(name) }),
  );

export const attempt = (id) =>
  atOnce(
    () => api.attempt(id),
    ({ paused, held }) =>
      tell(html`The event is due now.${paused ? " Its function is paused, so it waits until that is resumed." : untilHeld(held)}`),
  );

/** One dead letter becomes an event again. */
export const redrive = (id) =>
  atOnce(
    () => api.redrive([id]),
    ({ answers: [answer] }) => {
      if (answer.result === "stored" || answer.result === "duplicate") {
        tell(html`The dead letter is an event again: <a class="mono" href=${link("events", answer.id)}>${answer.id}</a>`);
      } else {
        complain(html`The dead letter was not redriven: ${said(answer.message)}`);
      }
    },
  );

export const setLogLevel = (level) =>
  atOnce(() => api.setLogLevel(level), (answer) => tell(html`The log's level is ${said(answer.level)} until the next restart.`));

/** `target`: where events may be handed over to, empty if nowhere. */
export function drain(target) {
  const handOver = (values, set) => html`<label class="check">
    <input type="checkbox" .checked=${values.hand_off} @change=${(event) => set({ hand_off: event.target.checked })}>
    <span>Also hand the events over, to ${said(target)}</span></label>`;
  ask({
    title: "Drain this daemon?",
    button: "Drain",
    values: { hand_off: false },
    fields: target ? handOver : undefined,
    check: async ({ hand_off: handsOff }) => ({
      text: handsOff
        ? "The daemon says that it is not ready, and hands its events over, scheduled ones and dead letters too."
        : "The daemon says that it is not ready, so load balancers send clients elsewhere.",
      more: html`<p>Requests that still arrive are served, and events are delivered. “End the drain” takes it back.${handsOff ? " Events that were handed over stay where they are." : nothing}</p>`,
    }),
    run: async ({ hand_off: handsOff }) => {
      await api.drain(handsOff);
      tell("The daemon drains.", { undo: endDrain });
      reload();
    },
  });
}

export const endDrain = () => atOnce(api.endDrain, () => tell("The daemon is ready again."));

const keepKeys = (values, set) => html`<label class="check">
  <input type="checkbox" .checked=${values.keep_keys} @change=${(event) => set({ keep_keys: event.target.checked }, false)}>
  <span>Keep their idempotency keys: who sends the same key again gets no new event</span>
</label>`;

export function cancel(id, name) {
  ask({
    title: "Cancel this event?",
    button: "Cancel the event",
    danger: true,
    values: { keep_keys: false },
    fields: keepKeys,
    check: async () => {
      const event = await api.event(id);
      if (event.state === "done") return { text: "The event is not stored any more.", nothing: true };
      return {
        text: html`The event of ${said(name)} is removed without being delivered. Nothing brings it back.`,
        more: html`<p>It is ${event.state}${event.in_flight ? ", and being attempted right now: the daemon refuses to cancel it" : ""}, and was accepted ${when(event.accepted_at)}.</p>`,
      };
    },
    run: async ({ keep_keys }) => {
      await api.cancel(id, keep_keys);
      tell("The event is cancelled.");
      reload();
    },
  });
}

export function purgeLetter(id, name) {
  ask({
    title: "Purge this dead letter?",
    button: "Purge it",
    danger: true,
    values: { keep_keys: false },
    fields: keepKeys,
    check: async () => {
      const letter = await api.letter(id);
      return {
        text: html`The dead letter of ${said(name)} is removed for good, with its payload. Nothing brings it back.`,
        more: html`<p>It was buried ${when(letter.buried_at)}.${letter.shipping ? " It is on its way to its queue right now: the daemon refuses to purge it." : ""}</p>`,
      };
    },
    run: async ({ keep_keys }) => {
      const { answers: [answer] } = await api.purgeLetters([id], keep_keys);
      if (answer.result !== "purged") throw new Error(answer.message);
      tell("The dead letter is purged.");
      reload();
    },
  });
}

/** All events of a function that wait. */
export function purgeFunction(name) {
  ask({
    title: html`Purge ${said(name)}?`,
    button: "Purge the events",
    danger: true,
    values: { state: "", accepted_before: "", keep_keys: false },
    fields: (values, set) => html`
      <div class="pair">
        <label>Which of them
          <select .value=${values.state} @change=${(event) => set({ state: event.target.value })}>
            <option value="">all that wait</option><option>ready</option><option>waiting</option><option>scheduled</option>
          </select></label>
        <label>Accepted before
          <input type="text" placeholder="2h, or a time" .value=${values.accepted_before} @change=${(event) => set({ accepted_before: event.target.value })}></label>
      </div>${keepKeys(values, set)}`,
    check: async ({ state, accepted_before }) => {
      const found = await api.purge(name, { state, accepted_before, dry_run: true });
      return {
        text: html`${count(found.events, "event")} of ${said(name)} (${bytes(found.bytes)}) ${found.events === 1 ? "is" : "are"} removed without being delivered.`,
        more: html`<p>Events that are being attempted stay, and so do dead letters. Nothing brings them back.</p>`,
        word: name,
        nothing: found.events === 0,
      };
    },
    run: async ({ state, accepted_before, keep_keys }) => {
      const done = await api.purge(name, { state, accepted_before, keep_keys });
      tell(html`${count(done.events, "event")} of ${said(name)} ${done.events === 1 ? "is" : "are"} purged.`);
      reload();
    },
  });
}

/** One answer each: how many ended how. */
export function tally(results) {
  const words = Object.entries(results).filter(([, n]) => n > 0);
  return words.map(([word, n]) => `${number(n)} ${word.replaceAll("-", " ")}`).join(", ") || "none";
}

const VERBS = {
  redrive: { title: "Redrive", one: "dead letter becomes an event again", many: "dead letters become events again", thing: "dead letter" },
  purge: { title: "Purge", one: "dead letter is removed for good", many: "dead letters are removed for good", thing: "dead letter" },
  cancel: { title: "Cancel", one: "event is removed without being delivered", many: "events are removed without being delivered", thing: "event" },
  attempt: { title: "Attempt", one: "event becomes due now", many: "events become due now", thing: "event" },
};

const ENDS = { redrive: "They get new ids, and their age counts from now.", purge: "Nothing brings them back.", cancel: "Nothing brings them back.", attempt: "What is paused or held still waits. Scheduled events are attempted only if the filter says so." };

/** The rows that are chosen, one by one where the API has no call for several. */
export function onChosen(action, ids) {
  const { title, one, many, thing } = VERBS[action];
  const isRemoval = action === "purge" || action === "cancel";
  ask({
    title: `${title} ${count(ids.length, thing)}?`,
    button: `${title} ${count(ids.length, thing)}`,
    danger: isRemoval,
    values: { keep_keys: false },
    fields: isRemoval ? keepKeys : undefined,
    check: async () => ({
      text: `${number(ids.length)} ${ids.length === 1 ? one : many}.`,
      more: html`<p>${ENDS[action]}</p>`,
      word: action === "purge" || ids.length > TYPED_FROM ? String(ids.length) : undefined,
    }),
    run: async ({ keep_keys }) => {
      tell(`${title}: ${tally(await resultsOf(action, ids, keep_keys))}.`);
      page.chosen.clear();
      reload();
      repaint();
    },
  });
}

async function resultsOf(action, ids, keepKeys) {
  const results = {};
  const add = (word) => (results[word] = (results[word] ?? 0) + 1);
  if (action === "redrive" || action === "purge") {
    const { answers } = action === "redrive" ? await api.redrive(ids) : await api.purgeLetters(ids, keepKeys);
    answers.forEach((answer) => add(answer.result));
    return results;
  }
  for (const id of ids) {
    try {
      await (action === "cancel" ? api.cancel(id, keepKeys) : api.attempt(id));
      add(action === "cancel" ? "cancelled" : "due");
    } catch (error) {
      if (error.status !== 404 && error.status !== 409) throw error;
      add(error.status === 404 ? "not-found" : "in-flight");
    }
  }
  return results;
}

/** What a filter says, in words. */
export function filterWords(filter) {
  const { function: name, ...rest } = filter;
  const words = Object.entries(rest).map(([key, value]) => `${key.replaceAll("_", " ")} ${value === true ? "yes" : value === false ? "no" : value === "" ? "none" : value}`);
  return [name ? `functions ${name}` : "all functions", ...words].map(visible).join(", ");
}

/** A job of the daemon's, on all that match a filter: counts first, and says so. */
export function onAll(action, filter, more = {}) {
  const { title, one, many, thing } = VERBS[action];
  const isRemoval = action === "purge" || action === "cancel";
  /** @param {Record<string, any>} values */
  const wanted = ({ rate, limit, keep_keys }) => ({
    action,
    filter,
    ...(rate ? { rate: `${rate}/s` } : {}),
    ...(limit ? { limit: Number(limit) } : {}),
    ...(keep_keys ? { keep_keys } : {}),
  });
  ask({
    title: html`${title} all that match?`,
    // "Cancel" alone could be taken for the way out of the dialog.
    button: `${title} the ${thing}s`,
    danger: isRemoval,
    values: { rate: "", limit: "", keep_keys: false, ...more },
    fields: (values, set) => html`
      <p class="muted">${filterWords(filter)}</p>
      <div class="pair">
        <label>At most so many<input type="number" min="1" step="1" placeholder="all" .value=${values.limit} @change=${(event) => set({ limit: event.target.value })}></label>
        <label>At most so many a second<input type="number" min="1" step="1" placeholder="no limit" .value=${values.rate} @change=${(event) => set({ rate: event.target.value }, false)}></label>
      </div>${isRemoval ? keepKeys(values, set) : nothing}`,
    check: async (values) => planOf(await counted({ ...wanted({ ...values, rate: "" }), dry_run: true }), values, one, many, thing, action),
    run: async (values, plan) => {
      const job = await api.begin({ ...wanted(values), expect: plan.matched });
      if (job.state === "refused" || job.state === "failed") throw Object.assign(new Error(job.message), { status: 409 });
      tell(html`${title}: the job is under way. <a href=${link("bulk", null, { job: job.id })}>Watch it</a>`);
      page.chosen.clear();
      reload();
    },
  });
}

/** A dry run, asked for again until it has counted everything. */
async function counted(wanted) {
  let job = await api.begin(wanted);
  while (job.state === "counting" || job.state === "running") {
    await new Promise((resolve) => setTimeout(resolve, 500));
    job = await api.job(job.id);
  }
  if (job.state === "failed" || job.state === "refused") throw new Error(job.message ?? `The count is ${job.state}`);
  return job;
}

function planOf(job, values, one, many, thing, action) {
  const matched = job.matched ?? 0;
  const all = values.limit ? Math.min(matched, Number(values.limit)) : matched;
  const oldest = job.oldest_at ? html` The oldest is of ${clockTime(Date.parse(job.oldest_at))}.` : nothing;
  const takes = values.rate && all ? html` It takes about ${duration(all / Number(values.rate))}.` : nothing;
  return {
    matched,
    text: all === 0 ? `No ${thing} matches.` : `${number(all)} ${all === 1 ? one : many}.`,
    more: all === 0 ? nothing : html`<p>${all < matched ? `${number(matched)} match in all.` : nothing}${oldest}${takes} ${ENDS[action]}</p>`,
    word: all > 0 && (action === "purge" || all > TYPED_FROM) ? String(all) : undefined,
    nothing: all === 0,
  };
}

export function stopJob(job) {
  ask({
    title: `Stop job ${job.id}?`,
    button: "Stop it",
    danger: true,
    check: async () => {
      const found = await api.job(job.id);
      if (found.state !== "running" && found.state !== "counting") return { text: `The job is ${found.state}.`, nothing: true };
      return { text: `${number(found.done)} of ${number(found.matched)} are done, and stay done. The rest is left as it is.` };
    },
    run: async () => {
      const found = await api.stop(job.id);
      tell(`Job ${found.id} is ${found.state === "running" ? "being stopped" : found.state}.`);
      reload();
    },
  });
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    tell(`${what} is copied.`);
  } catch {
    complain("The browser does not let this page copy. Mark the text and copy it yourself.");
  }
}

/** The most bytes of an export that this page gathers in memory. */
const EXPORT_MAX = 64 << 20;

/** Writes dead letters, with all that clients sent, into a file of this machine. */
export function exportLetters(filter) {
  ask({
    title: "Export all that match?",
    button: "Export",
    check: async () => ({
      text: "A file on your machine gets the dead letters with their payloads, keys and client contexts.",
      more: html`<p class="muted">${filterWords(filter)}</p><p>The daemon writes into its audit that you took them. They stay in the store. <code>sendoff dead-letters import</code> reads the file.</p>`,
    }),
    run: async () => {
      const lines = [];
      // In an address, false is a word.
      const query = filter.unshippable === undefined ? filter : { ...filter, unshippable: String(filter.unshippable) };
      let [after, size] = ["", 0];
      do {
        const found = await api.exported({ ...query, after });
        for (const { export: letter } of found.dead_letters) {
          const line = `${exactly(letter)}\n`;
          size += line.length;
          lines.push(line);
        }
        if (size > EXPORT_MAX) throw new Error(`That is more than ${bytes(EXPORT_MAX)}: use \`sendoff dead-letters export FILE\` instead`);
        after = found.next ?? "";
      } while (after);
      if (!lines.length) throw new Error("No dead letter matches");
      save(lines, "dead-letters.ndjson");
      tell(`${count(lines.length, "dead letter")} exported.`);
    },
  });
}

/** A value as JSON, unless a number in it has lost digits here. */
function exactly(value) {
  return JSON.stringify(value, (_, part) => {
    if (typeof part === "number" && !Number.isSafeInteger(part)) throw new Error("A browser cannot write this number exactly: use `sendoff dead-letters export FILE` instead");
    return part;
  });
}

function save(lines, name) {
  const url = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
