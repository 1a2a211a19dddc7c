// Who may see and do what: signing in, roles, payloads, other sites, and a proxy with a prefix.

import assert from "node:assert/strict";
import http from "node:http";
import { api, browser, button, eventually, fits, open, rig } from "./browser.mjs";

const ACTIONS = /^(Pause|Resume|Purge|Redrive|Cancel|Attempt|Drain|Stop)/;
const refused = ["401 (Unauthorized)", "403 (Forbidden)", "404 (Not Found)"];
const VIEWS = ["#/", "#/functions", "#/functions/orders", "#/events", `#/events/${rig.event}`, "#/dead-letters", "#/bulk", "#/activity", "#/activity?tab=operators", "#/configuration"];

const signIn = async (tab, token) => {
  await tab.page.getByLabel("Token").fill(token);
  await button(tab.page, "Sign in").click();
};

// Nobody sees anything without a token. It stays in the tab: not in an address, a cookie or a lasting store.
const reader = await open({ base: rig.guarded, expected: refused });
await reader.page.getByRole("heading", { name: "Sign in to sendoff" }).waitFor();
await reader.axe("signing in");
await signIn(reader, "a-token-of-nobody-0123456789012345");
await reader.page.getByRole("alert").getByText("The daemon does not know this token").waitFor();
await signIn(reader, rig.tokens.reader);
await reader.page.getByRole("navigation").waitFor();
assert.equal(await reader.page.evaluate(() => JSON.stringify(localStorage)).then((kept) => kept.includes("token")), false);
assert.ok(!reader.page.url().includes(rig.tokens.reader));

// A reader finds no action in any view, no payload, and the daemon refuses what the page does not offer.
for (const view of VIEWS) {
  await reader.go(view);
  assert.equal(await button(reader.page, ACTIONS).count(), 0, view);
  assert.equal(await reader.page.locator("main input[type=checkbox][aria-label^=Choose]").count(), 0, view);
}
await reader.go(`#/events/${rig.event}`);
await reader.page.getByText("You may not see payloads").waitFor();
const forged = (tab, path, method = "POST") =>
  tab.page.evaluate(([to, how]) => fetch(to, { method: how, headers: { Authorization: `Bearer ${sessionStorage.getItem("sendoff.token")}` } }).then((answer) => answer.status), [path, method]);
assert.equal(await forged(reader, "v1/functions/orders/purge"), 403);
assert.equal(await forged(reader, `v1/events/${rig.event}`, "DELETE"), 403);
assert.equal(await forged(reader, `v1/events/${rig.event}?payload=true`, "GET"), 403);
await button(reader.page, "Sign out").click();
await reader.page.getByRole("heading", { name: "Sign in to sendoff" }).waitFor();
assert.equal(await reader.page.evaluate(() => sessionStorage.length), 0);
await reader.done();

// A payload is in no answer before its button is pressed, and not in the page after its view is left.
const auditor = await open({ base: rig.guarded, expected: refused });
await signIn(auditor, rig.tokens.auditor);
await auditor.page.getByRole("navigation").waitFor();
for (const view of VIEWS) await auditor.go(view);
const leaked = () => auditor.bodies.filter(({ text }) => text.includes(rig.secret) || text.includes(btoa(rig.payload)));
assert.deepEqual(leaked(), []);
await auditor.go(`#/events/${rig.event}`);
await button(auditor.page, "Show the payload").click();
await auditor.page.getByText(rig.secret).waitFor();
await auditor.go("#/events");
await auditor.go(`#/events/${rig.event}`);
await button(auditor.page, "Show the payload").waitFor();
assert.equal(await auditor.page.getByText(rig.secret).count(), 0);
const seen = await api("actions", { base: rig.guarded, token: rig.tokens.auditor });
assert.equal(seen.actions.filter((one) => one.action === "view-payload" && one.result === "done").length, 1);
await auditor.done();

// An operator acts; on a daemon that is read-only nobody does.
const operator = await open({ base: rig.guarded, expected: refused });
await signIn(operator, rig.tokens.operator);
await operator.go("#/functions/orders");
await button(operator.page, /^Purge/).waitFor();
await operator.done();
const still = await open({ base: rig.readOnly, expected: refused });
await still.settle();
for (const view of VIEWS) {
  await still.go(view);
  assert.equal(await button(still.page, ACTIONS).count(), 0, view);
}
assert.equal(await forged(still, "v1/functions/orders/pause"), 403);
await still.done();

// A page of another site gets nothing: no answer, no script, no frame, no change.
const evil = http.createServer((_, answer) => answer.setHeader("Content-Type", "text/html").end("<!doctype html><title>evil</title>"));
await new Promise((resolve) => evil.listen(0, "127.0.0.1", resolve));
const other = await browser.newContext();
const page = await other.newPage();
await page.goto(`http://127.0.0.1:${evil.address().port}/`);
const got = await page.evaluate(async (target) => {
  const outcome = (promise) => promise.then((answer) => `${answer.type} ${answer.status}`, () => "nothing");
  const element = (name, set) => new Promise((resolve) => {
    const made = document.createElement(name);
    made.onload = () => resolve(name === "iframe" ? (() => { try { return made.contentDocument?.body?.innerText ?? "nothing"; } catch { return "nothing"; } })() : "loaded");
    made.onerror = () => resolve("nothing");
    set(made);
    document.body.append(made);
  });
  return {
    read: await outcome(fetch(`${target}/v1/status`)),
    change: await outcome(fetch(`${target}/v1/functions/orders/pause`, { method: "POST" })),
    json: await outcome(fetch(`${target}/v1/bulk`, { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" })),
    script: await element("script", (made) => (made.src = `${target}/console/js/main.js`)),
    image: await element("img", (made) => (made.src = `${target}/console/icon.svg`)),
    frame: await element("iframe", (made) => (made.src = `${target}/`)),
    blind: await outcome(fetch(`${target}/v1/functions/orders/pause`, { method: "POST", mode: "no-cors" })),
  };
}, rig.admin);
const { blind, ...readable } = got;
for (const [what, found] of Object.entries(readable)) assert.equal(found, "nothing", what);
assert.match(blind, /^(opaque 0|nothing)$/);
assert.equal((await api("functions")).functions.find((one) => one.function === "orders").paused, false);
// A name that was made to point here.
assert.equal(await new Promise((resolve, reject) => {
  const { hostname, port } = new URL(rig.admin);
  http.get({ hostname, port, path: "/", headers: { Host: "evil.example" } }, (answer) => resolve(answer.resume().statusCode)).on("error", reject);
}), 421);
await other.close();
evil.close();

// Behind a proxy that takes a prefix away: all views, and an action.
const PREFIX = "/ops/sendoff";
const proxy = http.createServer((request, answer) => {
  if (!request.url.startsWith(`${PREFIX}/`)) return answer.writeHead(404).end();
  const { hostname, port } = new URL(rig.admin);
  const onward = http.request({ hostname, port, method: request.method, path: request.url.slice(PREFIX.length), headers: request.headers }, (back) => {
    answer.writeHead(back.statusCode, back.headers);
    back.pipe(answer);
  });
  request.pipe(onward);
});
await new Promise((resolve) => proxy.listen(0, "127.0.0.1", resolve));
const behind = await open({ base: `http://127.0.0.1:${proxy.address().port}`, path: `${PREFIX}/`, expected: refused });
await behind.settle();
for (const view of VIEWS) {
  await behind.go(view);
  assert.equal(await behind.page.locator(".strip").count(), 0, view);
  await fits(behind.page, view);
}
assert.ok(behind.bodies.every(({ url }) => new URL(url).pathname.startsWith(`${PREFIX}/`)));
await behind.go("#/functions/orders");
await button(behind.page, "Pause orders").click();
await eventually("it is paused", async () => (await api("functions")).functions.find((one) => one.function === "orders").paused);
await behind.done();
proxy.close();
proxy.closeAllConnections();

// A daemon that knows its prefix, for a proxy that hands the path on: also without the last slash.
const below = await open({ base: rig.prefixed, path: PREFIX, expected: refused });
await below.settle();
assert.ok(below.page.url().startsWith(`${rig.prefixed}${PREFIX}/#/`), below.page.url());
await below.go("#/configuration");
await below.page.getByText(PREFIX, { exact: true }).first().waitFor();
assert.equal(await below.page.locator(".strip").count(), 0);
await below.done();

// A daemon without any event, and with one.
const empty = await open({ base: rig.empty, expected: refused });
for (const view of [...VIEWS, "#/functions/nowhere"]) {
  await empty.go(view);
  await empty.axe(`${view} of an empty daemon`);
}
await empty.go("#/");
await empty.page.getByText("Nothing needs attention.").waitFor();
await fetch(`${rig.emptyIngest}/v1/events`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ function: "first", payload: {}, delay: "1h" }) });
await empty.page.getByRole("link", { name: "first" }).waitFor();
await empty.go("#/events");
await empty.page.getByText("1 shown, 1 in all").waitFor();
await empty.done();
await browser.close();
