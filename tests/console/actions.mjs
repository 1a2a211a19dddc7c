// Every action, by the buttons of the page, and what the API says of it afterwards.

import assert from "node:assert/strict";
import { api, browser, button, confirm, eventually, lane, open, rig } from "./browser.mjs";

const tab = await open({ hash: "#/functions", expected: ["404 (Not Found)", "409 (Conflict)"] });
const { page, go, toast } = tab;
const dialog = page.locator("dialog[open]");
const event = (id) => api(`events/${id}`);
/** Gone from the store, in this way. */
const hasEnded = (found, outcome) => found.end?.outcome === outcome;
const send = async (lines) => {
  const answer = await fetch(`${rig.ingest}/v1/events`, { method: "POST", headers: { "Content-Type": "application/x-ndjson" }, body: lines.map((line) => `${JSON.stringify(line)}\n`).join("") });
  return (await answer.text()).trim().split("\n").map((line) => JSON.parse(line).id);
};
const later = (name, n) => Array.from({ length: n }, (_, i) => ({ function: name, payload: { id: `${name}-${i}` }, delay: "1h" }));

// Pause, undo, and resume.
await button(page, "Pause orders").click();
await toast("orders is paused");
assert.equal((await lane("orders")).paused, true);
await page.locator(".toast").getByRole("button", { name: "Undo" }).click();
await toast("orders is resumed");
assert.equal((await lane("orders")).paused, false);
await go("#/functions/orders");
await button(page, "Pause orders").click();
await button(page, "Resume orders").click();
await eventually("it is resumed", async () => !(await lane("orders")).paused);

// One event: attempted now, and delivered.
const [now, gone] = await send(later("later", 2));
await go(`#/events/${now}`);
await button(page, "Attempt now").click();
await toast("The event is due now");
await eventually("Lambda has it", async () => hasEnded(await event(now), "delivered"));
await page.getByText("Lambda's own queue has it").waitFor();

// One event: cancelled. Leaving the dialog does nothing.
await go(`#/events/${gone}`);
await button(page, "Cancel …").click();
await dialog.getByText("is removed without being delivered").waitFor();
await page.keyboard.press("Escape");
assert.equal((await event(gone)).state, "scheduled");
await button(page, "Cancel …").click();
await confirm(page, "Cancel the event");
await toast("The event is cancelled");
assert.ok(hasEnded(await event(gone), "cancelled"));
await page.locator(".timeline").getByText("Cancelled").waitFor();

// Chosen events: two are cancelled, the third stays.
const chosen = await send(later("chosen", 3));
await go("#/events?function=chosen");
for (const id of chosen.slice(0, 2)) await page.getByLabel(`Choose event ${id}`).check();
await button(page, "Cancel …").click();
assert.match(await confirm(page, "Cancel 2"), /^2 events are removed/);
await toast("Cancel: 2 cancelled");
assert.equal((await api("events?function=chosen")).total, 1);

// All events of a function are purged: its name must be typed.
await send(later("nightly", 3));
await go("#/functions/nightly");
await button(page, "Purge …").click();
assert.match(await confirm(page, "Purge the events", "nightly"), /^3 events of nightly \(.+\) are removed/);
await toast("3 events of nightly are purged");
assert.equal((await lane("nightly")).depth, 0);

// All that match a filter: a job, for which the number must be typed. More came meanwhile, so the daemon asks again.
await send(later("bulk-a", 100));
await send(later("bulk-b", 20));
await go("#/events?function=bulk-*");
await button(page, "Cancel …").click();
await dialog.getByText("120 events are removed").waitFor();
await send(later("bulk-b", 30));
await confirm(page, "Cancel", "120");
await dialog.getByRole("alert").waitFor();
await dialog.getByText("150 events are removed").waitFor();
assert.equal((await api("events?function=bulk-*")).total, 150, "nothing was done");
await confirm(page, "Cancel", "150");
await toast("the job is under way");
await eventually("all are cancelled", async () => (await api("events?function=bulk-*")).total === 0);
await page.locator(".toast", { hasText: "the job is under way" }).getByRole("link").click();
await page.getByText("150 of 150").waitFor();
await page.getByText("150 cancelled").waitFor();

// A job with a rate and a limit, stopped.
await send(later("slow", 40));
await go("#/events?function=slow&state=scheduled");
await button(page, "Attempt now …").click();
await dialog.getByLabel("At most so many a second").fill("1");
await dialog.getByLabel("At most so many", { exact: true }).fill("30");
await dialog.getByLabel("At most so many", { exact: true }).blur();
await dialog.getByText("30 events become due now").waitFor();
await dialog.getByText("40 match in all").waitFor();
await confirm(page, "Attempt");
await go("#/bulk");
await button(page, /^Stop job/).click();
await confirm(page, "Stop it");
await eventually("it is stopped", async () => (await api("bulk")).jobs.some((job) => job.action === "attempt" && job.state === "stopped"));
assert.ok((await lane("slow")).depth >= 5, "the rest is left as it is");

// Dead letters: one is redriven, and delivered under a new id.
await go(`#/events/${rig.mended[0]}`);
await button(page, "Redrive").click();
await toast("is an event again");
const link = page.locator(".toast", { hasText: "is an event again" }).getByRole("link");
const again = await link.innerText();
await eventually("it is delivered", async () => hasEnded(await event(again), "delivered"));
assert.equal((await event(rig.mended[0])).end.new_id, again);
await link.click();
await page.getByRole("heading", { name: again }).waitFor();

// The others of its cause, by a job.
await go("#/dead-letters");
await button(page, /^Redrive 2 of mended/).click();
assert.match(await confirm(page, "Redrive"), /^2 dead letters become events again/);
await eventually("they are delivered", async () => (await lane("mended")).buried === 0);

// One, and then chosen ones, are purged.
await go(`#/events/${rig.refused[0]}`);
await button(page, "Purge …").click();
await confirm(page, "Purge it");
await toast("The dead letter is purged");
assert.ok(hasEnded(await event(rig.refused[0]), "purged"));
await go("#/dead-letters?function=refusing");
for (const id of rig.refused.slice(1, 3)) await page.getByLabel(`Choose dead letter ${id}`).check();
await page.locator(".chosen").getByRole("button", { name: "Purge …" }).click();
assert.match(await confirm(page, "Purge 2", "2"), /^2 dead letters are removed for good/);
await toast("Purge: 2 purged");
assert.equal((await lane("refusing")).buried, rig.refused.length - 3);

// The daemon: its log level, and a drain.
await go("#/configuration");
await page.getByLabel("Log level").selectOption("debug");
await toast("The log's level is debug");
assert.equal((await api("log-level")).level, "debug");
await button(page, "Drain …").click();
await confirm(page, "Drain");
await toast("The daemon drains");
await eventually("it is not ready", async () => (await fetch(`${rig.admin}/readyz`)).status === 503);
await button(page, "End the drain").click();
await eventually("it is ready", async () => (await fetch(`${rig.admin}/readyz`)).status === 200);

// Each of them is in the audit, and the page shows it.
await go("#/activity?tab=operators");
for (const action of ["pause function", "resume function", "attempt event", "cancel event", "purge function", "redrive dead letters", "purge dead letters", "set log level", "drain", "end drain"]) {
  await page.getByRole("cell", { name: action, exact: true }).first().waitFor();
}

// A refusal is shown as the daemon says it.
await page.route("**/v1/functions/orders/pause", (route) => route.fulfill({ status: 503, json: { message: "the outbox is away: try again" } }));
await go("#/functions/orders");
tab.faults.length = 0;
await button(page, "Pause orders").click();
await toast("the outbox is away: try again");
assert.equal((await lane("orders")).paused, false);
assert.ok(tab.faults.every((fault) => fault.includes("503")));
tab.faults.length = 0;
await tab.done();

// A drain that hands the events over, and what became of one of them.
const leaving = await open({ base: rig.leaving, hash: "#/configuration" });
await button(leaving.page, "Drain …").click();
await leaving.page.locator("dialog[open]").getByLabel("Also hand the events over").check();
assert.match(await confirm(leaving.page, "Drain"), /hands its events over/);
const moved = (id) => api(`events/${id}`, { base: rig.leaving });
await eventually("it is handed over", async () => hasEnded(await moved(rig.moved), "handed-over"));
assert.equal((await event(rig.moved)).state, "scheduled");
await leaving.go(`#/events/${rig.moved}`);
await leaving.page.locator(".timeline").getByText("Handed over").waitFor();
await leaving.go("#/configuration");
await button(leaving.page, "End the drain").click();
await leaving.done();
await browser.close();
