// Every view, on a daemon in trouble: nothing is wrong in either theme or on a phone, and untrusted text stays text.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { api, browser, button, eventually, fits, open, rig } from "./browser.mjs";

const VIEWS = {
  overview: "#/",
  functions: "#/functions",
  function: `#/functions/${encodeURIComponent("invoices")}`,
  "unknown function": "#/functions/nowhere",
  events: "#/events",
  "filtered events": "#/events?function=or*&state=waiting&since=2h&error=Throttl",
  event: `#/events/${rig.waiting}`,
  "dead letter": `#/events/${rig.buried}`,
  "delivered event": `#/events/${rig.delivered}`,
  "unknown event": "#/events/00000000-0000-7000-8000-000000000000",
  "dead letters": "#/dead-letters",
  "bulk jobs": "#/bulk",
  outcomes: "#/activity",
  operators: "#/activity?tab=operators",
  configuration: "#/configuration",
  "no view": "#/nowhere",
};

// The browser itself says so of every answer that is no success.
const expected = ["404 (Not Found)"];

for (const scheme of ["light", "dark"]) {
  const tab = await open({ scheme, expected });
  for (const [name, hash] of Object.entries(VIEWS)) {
    await tab.go(hash);
    // A theme changes colours, and nothing else.
    await tab.axe(`${name}, ${scheme}`, scheme === "dark" ? ["color-contrast"] : undefined);
    await fits(tab.page, name);
    assert.ok((await tab.page.title()).endsWith("· sendoff"), name);
  }
  await tab.done();
}

const phone = await open({ size: [390, 844], expected });
for (const [name, hash] of Object.entries(VIEWS)) {
  await phone.go(hash);
  await fits(phone.page, `${name} on a phone`);
}
await phone.axe("the last view on a phone");
await phone.done();

// What another's program wrote is shown as text: with its markup, and with what hides or turns text made visible.
const tab = await open({ hash: `#/events/${rig.buried}`, expected });
await tab.settle();
const error = await tab.page.locator("#error ~ *, .quoted").first().innerText();
const shown = await tab.page.locator("main").innerText();
assert.ok(shown.includes("<img src=x onerror=alert(1)>") && shown.includes("\\u202e"), `${error}\n${shown}`);
assert.equal(await tab.page.locator("main img").count(), 0);
await button(tab.page, "Show the payload").click();
await tab.page.getByText("<script>alert(2)</script>").waitFor();
assert.equal(await tab.page.locator("main script").count(), 0);
await button(tab.page, "As it is").click();
await tab.page.locator(".quoted pre", { hasText: "alert(2)" }).waitFor();
await button(tab.page, "Hide it").click();
assert.equal(await tab.page.getByText("alert(2)").count(), 0);

// A name that no door would accept: should one come, it is text, too.
const HOSTILE = '"><svg onload=alert(3)>\u202e\u0000&lt;';
await tab.page.route("**/v1/functions*", async (route) => {
  const answer = await route.fetch();
  const json = await answer.json();
  json.functions[0].function = HOSTILE;
  await route.fulfill({ response: answer, json });
});
await tab.go("#/functions");
await tab.page.getByRole("link", { name: '"><svg onload=alert(3)>\\u202e\\u0000&lt;' }).waitFor();
assert.equal(await tab.page.locator("main table svg").count(), 0);
await tab.page.unroute("**/v1/functions*");

// All state is in the address: filters, sorting, and back again.
await tab.go("#/functions");
await button(tab.page, "Function").first().click();
assert.match(tab.page.url(), /#\/functions\?sort=-function$/);
await tab.page.goBack();
assert.match(tab.page.url(), /#\/functions$/);
await tab.go("#/events?function=invoices&state=buried");
assert.equal(await tab.page.getByLabel("Function").inputValue(), "invoices");
assert.equal(await tab.page.getByLabel("State").inputValue(), "buried");
assert.ok((await tab.page.locator("tbody tr").count()) >= 1);
await tab.page.getByLabel("Id, or idempotency key").or(tab.page.getByPlaceholder("Id, or idempotency key")).fill(rig.buried);
await button(tab.page, "Find").click();
await tab.page.getByRole("heading", { name: rig.buried }).waitFor();
await tab.go("#/events?function=orders");
await tab.page.getByPlaceholder("Id, or idempotency key").fill("key-of-the-delivered-one");
await button(tab.page, "Find").click();
await tab.page.getByRole("heading", { name: rig.delivered }).waitFor();

// Times in UTC, and back.
await tab.page.keyboard.press("z");
await tab.page.getByText(/\d\d:\d\d:\d\d UTC/).first().waitFor();
await tab.page.keyboard.press("z");

// Charts come as tables, too.
await tab.go("#/");
await button(tab.page, "table").first().click();
await tab.page.getByRole("region", { name: /Events a second, as a table/ }).waitFor();
await tab.axe("a chart as a table");

// While nobody looks, nothing is asked.
await tab.page.evaluate(() => {
  Object.defineProperty(document, "hidden", { value: true, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
});
const asked = () => tab.bodies.length;
await eventually("the last answers are in", async () => {
  const before = asked();
  await new Promise((resolve) => setTimeout(resolve, 2_500));
  return asked() === before;
});
await tab.page.evaluate(() => {
  delete document.hidden;
  document.dispatchEvent(new Event("visibilitychange"));
});
const before = asked();
await eventually("it asks again", () => asked() > before);
await tab.done();

// Many: what the daemon says of a million events and two thousand functions is shown, and quickly.
const many = await open({ hash: "#/activity" });
const million = (functions) => Array.from({ length: 2_000 }, (_, i) => ({ ...functions[0], function: `fn-${i}`, depth: 500 + i, ready: 500 + i }));
await many.page.route("**/v1/snapshot", async (route) => {
  const answer = await route.fetch();
  const json = await answer.json();
  Object.assign(json.status.outbox, { events: 1_000_000, ready: 1_000_000 });
  const member = { version: "0.1.0", since: new Date().toISOString(), this: false, beat_age_seconds: 1.2, draining: false, answers: true, functions: 700, events: 300_000, bytes: 1 << 30 };
  const name = `a-daemon-with-a-long-name-${"x".repeat(40)}`;
  json.status.fleet = { unowned: 3, members: [{ ...member, name, this: true }, { ...member, name: "b", answers: false, beat_age_seconds: 9 }, { ...member, name: "c<b>\u202e", draining: true }] };
  json.functions = million(json.functions).slice(0, 500);
  json.functions_total = 2_000;
  await route.fulfill({ response: answer, json });
});
await many.page.route("**/v1/functions*", async (route) => {
  const answer = await route.fetch();
  const json = await answer.json();
  await route.fulfill({ response: answer, json: { functions: million(json.functions) } });
});
await many.go("#/");
await many.page.getByText("1M", { exact: true }).first().waitFor();
await many.page.getByText("All 2,000").waitFor();
await many.page.getByRole("heading", { name: "Daemons that share this outbox" }).waitFor();
await many.page.getByText("3 functions of nobody just now").waitFor();
assert.match(await many.page.getByRole("row", { name: "does not answer" }).innerText(), /^b\b/);
assert.match(await many.page.getByRole("row", { name: "draining" }).innerText(), /^c<b>\\u202e/);
await many.axe("an overview of a fleet");
await many.page.setViewportSize({ width: 390, height: 800 });
await fits(many.page, "a fleet on a phone");
await many.page.setViewportSize({ width: 1280, height: 800 });
await many.go("#/functions");
await many.page.getByText("2,000 functions, 200 of them shown").waitFor();
await button(many.page, "Show 200 more").click();
await many.page.getByText("400 of them shown").waitFor();
await many.done();

// The pictures of docs/console.md.
const SHOTS = [["overview", "#/", "light"], ["overview-dark", "#/", "dark"], ["dead-letters", "#/dead-letters", "light"], ["event", `#/events/${rig.buried}`, "dark"]];
mkdirSync(rig.shots, { recursive: true });
for (const [name, hash, scheme] of SHOTS) {
  const shot = await open({ hash, scheme, size: [1200, 780], expected });
  await shot.settle();
  await eventually("the charts have points", async () => (await api("series?window=5m")).times?.length > 8);
  await shot.page.keyboard.press("r");
  await shot.page.waitForLoadState("networkidle").catch(() => {});
  await shot.page.screenshot({ path: `${rig.shots}/${name}.png` });
  await shot.done();
}
const narrow = await open({ size: [390, 780], scheme: "light", expected });
await narrow.settle();
await narrow.page.screenshot({ path: `${rig.shots}/phone.png` });
await narrow.done();
await browser.close();
