// Addresses: all state of a view is in the part after `#`, so that a link shows what its sender saw.
// `#/events?function=orders-*&state=waiting`, `#/functions/orders`.

/**
 * @typedef {object} Route
 * @property {string} view the first part of the path; empty for the overview
 * @property {string|null} id the second part: a function's name, or an event's id
 * @property {Record<string, string>} query
 */

/** @returns {Route} */
export function parse(hash) {
  const [path, search] = split(hash.replace(/^#\/?/, ""));
  const at = path.indexOf("/");
  const view = at < 0 ? path : path.slice(0, at);
  const id = at < 0 ? null : decode(path.slice(at + 1));
  return { view, id, query: Object.fromEntries(new URLSearchParams(search)) };
}

function split(text) {
  const at = text.indexOf("?");
  return at < 0 ? [text, ""] : [text.slice(0, at), text.slice(at + 1)];
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The address of a view. Empty values are left out. */
export function link(view, id = null, query = {}) {
  const path = id === null ? view : `${view}/${encodeURIComponent(id)}`;
  const search = new URLSearchParams(given(query)).toString();
  return `#/${path}${search ? `?${search}` : ""}`;
}

/** Without what is empty. */
export const given = (query) =>
  Object.fromEntries(Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== false));
