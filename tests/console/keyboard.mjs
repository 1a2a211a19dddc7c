// The console without a mouse.

import assert from "node:assert/strict";
import { api, browser, eventually, lane, open, rig } from "./browser.mjs";

const tab = await open({ hash: "#/", expected: ["404 (Not Found)"] });
const { page, settle } = tab;
const press = (key) => page.keyboard.press(key);
const focused = () => page.evaluate(() => document.activeElement.textContent.trim() || document.activeElement.name || document.activeElement.tagName);
await settle();

// The first stop leads past the names of views.
await press("Tab");
assert.equal(await focused(), "Skip to the content");
await press("Enter");
assert.equal(await page.evaluate(() => document.activeElement.id), "main");

// Views by their numbers; rows; the filter; choosing.
await press("2");
await page.getByRole("heading", { name: "Functions", exact: true }).waitFor();
await settle();
await press("j");
const first = await page.evaluate(() => document.activeElement.getAttribute("href"));
await press("j");
assert.notEqual(await page.evaluate(() => document.activeElement.getAttribute("href")), first);
await press("k");
assert.equal(await page.evaluate(() => document.activeElement.getAttribute("href")), first);
await press("Enter");
await page.waitForURL((url) => url.hash === first);
await settle();

// The function of the page is paused, and resumed.
await page.locator("[data-pause]").waitFor();
const name = decodeURIComponent(first.replace("#/functions/", ""));
await press("p");
await eventually("it is paused", async () => (await lane(name)).paused);
await page.getByRole("button", { name: `Resume ${name}` }).waitFor();
await press("p");
await eventually("it is resumed", async () => !(await lane(name)).paused);

await press("3");
await page.getByRole("heading", { name: "Events", exact: true }).waitFor();
await settle();
await press("/");
await page.keyboard.type("2");
assert.match(page.url(), /#\/events$/, "a digit in a field is a digit");
await press("Escape");
await page.goto(`${rig.admin}/#/events?function=later`);
await settle();
await page.locator("[data-row]").first().waitFor();
await press("j");
await press("x");
await page.getByText("1 chosen").waitFor();

// A dialog holds the focus, tells what it is, and gives the focus back.
await page.getByRole("button", { name: "Cancel …" }).focus();
await press("Enter");
await page.locator("dialog[open] .what").waitFor();
for (let i = 0; i < 8; i += 1) {
  await press("Tab");
  assert.ok(await page.evaluate(() => document.activeElement === document.body || document.querySelector("dialog").contains(document.activeElement)));
}
await tab.axe("an open dialog");
await press("Escape");
await page.locator("dialog[open]").waitFor({ state: "detached" }).catch(() => {});
assert.equal(await focused(), "Cancel …");
assert.equal((await api("events?function=later")).total, 1);

// The list of keys; live and not.
await press("?");
await page.getByRole("heading", { name: "Keys" }).waitFor();
await tab.axe("the list of keys");
await press("Escape");
await press("l");
await page.locator(".tools .live.off").waitFor();
await press("l");
await page.locator(".tools .live:not(.off)").waitFor();
await tab.done();
await browser.close();
