// A hundred thousand events, real ones: every view loads, pages, counts, and changes them by a job. And one large payload.

import assert from "node:assert/strict";
import { api, browser, button, confirm, eventually, fits, open, rig } from "./browser.mjs";

/** A busy machine counts so many for a while. */
const LONG_MS = 100_000;
const ALL = rig.events.toLocaleString("en");
const tab = await open({ hash: "#/", expected: ["404 (Not Found)"] });
tab.context.setDefaultTimeout(LONG_MS);
const { page, go } = tab;
const main = page.locator("main");
const dialog = page.locator("dialog[open]");

for (const hash of ["#/", "#/functions", "#/functions/bulk-0", "#/events", "#/events?state=scheduled&function=bulk-1*", "#/dead-letters", "#/bulk", "#/activity", "#/configuration"]) {
  await go(hash);
  await fits(page, hash);
  assert.equal(await page.locator(".strip").count(), 0, hash);
}
await tab.axe("the configuration beside many events");

// The overview counts them all; the functions are shown in pieces, and sorted.
await go("#/");
await main.getByText(/^100K$|^100,0\d\d$/).first().waitFor();
await go("#/functions?sort=-scheduled");
await page.getByText(/functions, 200 of them shown/).waitFor();
assert.equal(await main.locator("tbody tr").count(), 200);

// Events page by page: each page has other events, and the last one says that it is the last.
await go("#/events?function=bulk-*");
await page.getByText(`in all`).first().waitFor();
assert.ok((await main.innerText()).includes(`${ALL} in all`), await main.innerText());
const ids = () => main.locator("tbody th a[data-row]").evaluateAll((links) => links.map((link) => link.getAttribute("href")));
const first = await ids();
await page.getByRole("link", { name: "Next page" }).click();
await eventually("another page", async () => (await ids())[0] !== first[0]);
assert.ok((await ids()).every((id) => !first.includes(id)));
await page.goBack();
await eventually("the first page again", async () => (await ids())[0] === first[0]);

// All that match: counted by the daemon, cancelled by a job that may be stopped and begun again.
await button(page, "Cancel …").click();
await dialog.getByText(`${ALL} events are removed`).waitFor();
await dialog.getByLabel("At most so many a second").fill("100");
await dialog.getByLabel("At most so many a second").blur();
await confirm(page, "Cancel", String(rig.events));
await go("#/bulk");
await eventually("it has begun", async () => (await api("bulk")).jobs.some((job) => job.state === "running" && job.done > 0), LONG_MS);
await button(page, /^Stop job/).click();
await confirm(page, "Stop it");
await eventually("it is stopped", async () => (await api("bulk")).jobs.every((job) => job.state !== "running"), LONG_MS);
const left = (await api("events?function=bulk-*&limit=1")).total;
assert.ok(left > rig.events / 2 && left < rig.events, `${left} are left`);
await go("#/events?function=bulk-*");
await button(page, "Cancel …").click();
await dialog.getByText(`${left.toLocaleString("en")} events are removed`).waitFor();
await dialog.getByLabel("At most so many", { exact: true }).fill("3000");
await dialog.getByLabel("At most so many", { exact: true }).blur();
await dialog.getByText("3,000 events are removed").waitFor();
await confirm(page, "Cancel", "3000");
await go("#/bulk");
await eventually("so many are cancelled", async () => (await api("bulk")).jobs.some((job) => job.state !== "running" && job.done === 3_000), LONG_MS);
assert.equal((await api("events?function=bulk-*&limit=1")).total, left - 3_000);
await page.getByText("3,000 of 3,000").waitFor();

// A payload of nearly a mebibyte, with what no text should have.
await go(`#/events/${rig.large}`);
await button(page, "Show the payload").click();
await page.getByText("\\u0000 and \\u202e").first().waitFor();
await fits(page, "a large payload");
await button(page, "Hide it").click();

// Dead letters as a file, with what the client sent.
await go("#/dead-letters");
await button(page, "Export …").click();
const download = page.waitForEvent("download");
await confirm(page, "Export");
const text = await (await (await download).createReadStream()).setEncoding("utf8").toArray().then((parts) => parts.join(""));
const lines = text.trim().split("\n").map((line) => JSON.parse(line));
assert.equal(lines.length, 3);
assert.ok(lines.every((line) => atob(line.payload_base64).includes("refused-")));
await tab.toast("3 dead letters exported");

await tab.done();
await browser.close();
