// The operator's API. The page knows nothing that the command line could not ask for, and every address stands here.
// Addresses are relative to the document, so that the page works below any path of a proxy.

import { heardTime } from "./format.js";
import { given } from "./router.js";

const TOKEN = "sendoff.token";
const PATIENCE_MS = 30_000;

/** A refusal, or no answer at all (`status` 0). */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Of this tab only, and gone with it. No cookie, so no other page's request can use it.
export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;
export const signIn = (token) => sessionStorage.setItem(TOKEN, token);
export const signOut = () => sessionStorage.removeItem(TOKEN);

/**
 * @param {string} method
 * @param {string} path below `v1/`, its parts encoded
 * @param {{query?: object, body?: object, headers?: object, signal?: AbortSignal}} [more]
 */
async function call(method, path, { query = {}, body, headers = {}, signal } = {}) {
  const search = new URLSearchParams(given(query)).toString();
  const token = sessionStorage.getItem(TOKEN);
  const sent = { ...headers };
  if (token !== null) sent.Authorization = `Bearer ${token}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const patience = AbortSignal.timeout(PATIENCE_MS);
  let answer, text;
  try {
    answer = await fetch(new URL(`v1/${path}${search ? `?${search}` : ""}`, document.baseURI), {
      method,
      headers: sent,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, patience]) : patience,
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, error.name === "TimeoutError" ? "The daemon did not answer within 30 seconds" : "The daemon does not answer");
  }
  const date = Date.parse(answer.headers.get("Date") ?? "");
  // The header has whole seconds, cut off.
  if (date) heardTime(date + 500, 500);
  let json = null;
  try {
    json = text ? JSON.parse(text) : null;
  } catch {
    throw new Refused(answer.status, `The answer is not the daemon's (status ${answer.status}): a proxy may have changed it`);
  }
  if (!answer.ok) throw new Refused(answer.status, json?.message ?? `The daemon answered with status ${answer.status}`);
  return json;
}

const get = (path, query, more) => call("GET", path, { query, ...more });
const part = encodeURIComponent;

export const whoami = () => get("whoami");
export const snapshot = (signal) => get("snapshot", {}, { signal });
export const series = (query, signal) => get("series", query, { signal });
export const recent = (query, signal) => get("recent", query, { signal });
export const actions = (limit, signal) => get("actions", { limit }, { signal });
/** All values, or those that apply to a function. */
export const config = (name, signal) => get("config", { function: name }, { signal });

export const functions = (query, signal) => get("functions", query, { signal });
export const pause = (name) => call("POST", `functions/${part(name)}/pause`);
export const resume = (name) => call("POST", `functions/${part(name)}/resume`);
export const purge = (name, query) => call("POST", `functions/${part(name)}/purge`, { query });

export const events = (query, signal) => get("events", query, { signal });
export const event = (id, signal) => get(`events/${part(id)}`, {}, { signal });
export const payload = (id) => get(`events/${part(id)}`, { payload: true });
export const cancel = (id, keepKeys) => call("DELETE", `events/${part(id)}`, { query: { keep_keys: keepKeys } });
export const attempt = (id) => call("POST", `events/${part(id)}/attempt`);
/** The key is in a header: proxies write addresses into their logs. */
export const key = (name, text, tenant) =>
  get("keys", { function: name, tenant_id: tenant }, { headers: { "Idempotency-Key": text } });

export const letters = (query, signal) => get("dead-letters", query, { signal });
export const letter = (id, signal) => get(`dead-letters/${part(id)}`, {}, { signal });
/** A page with all that clients sent. */
export const exported = (query, signal) => get("dead-letters", { ...query, payloads: true, limit: 200 }, { signal });
export const groups = (query, signal) => get("dead-letters/groups", query, { signal });
export const queues = (signal) => get("dead-letters/queues", {}, { signal });
export const redrive = (ids) => call("POST", "dead-letters/redrive", { body: { ids } });
export const purgeLetters = (ids, keepKeys) =>
  call("POST", "dead-letters/purge", { body: { ids }, query: { keep_keys: keepKeys } });

export const jobs = (signal) => get("bulk", {}, { signal });
export const job = (id, signal) => get(`bulk/${part(id)}`, {}, { signal });
export const begin = (wanted) => call("POST", "bulk", { body: wanted });
export const stop = (id) => call("DELETE", `bulk/${part(id)}`);

export const logLevel = (signal) => get("log-level", {}, { signal });
export const setLogLevel = (level) => call("PUT", "log-level", { body: { level } });
export const drain = (handOff) => call("PUT", "drain", { query: { hand_off: handOff } });
export const endDrain = () => call("DELETE", "drain");
