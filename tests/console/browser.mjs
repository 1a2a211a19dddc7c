// A browser as an operator has it, which notes whatever a page must not do. For the scripts beside this file.
//
// Each script is started by tests/it/console.rs, with what it needs as JSON in the variable CONSOLE.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

/** What the test has started: addresses, ids, tokens. */
export const rig = JSON.parse(process.env.CONSOLE);

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const PATIENCE_MS = 30_000;

export const browser = await chromium.launch({
  executablePath: rig.chromium,
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
});

/**
 * Opens the console. What must not happen is noted in `faults`; `expected` are texts of the browser's own messages that
 * belong to the test, as of an answer with status 401.
 */
export async function open({ base = rig.admin, hash = "#/", scheme = "light", size = [1280, 800], expected = [], path = "/" } = {}) {
  const [width, height] = size;
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, reducedMotion: "reduce" });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  const faults = [];
  const bodies = [];
  page.on("console", (message) => {
    const text = message.text();
    if (["error", "warning"].includes(message.type()) && !expected.some((part) => text.includes(part))) faults.push(text);
  });
  page.on("pageerror", (error) => faults.push(`${error.message}\n${error.stack}`));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (!["blob:", "data:"].includes(url.protocol) && url.origin !== new URL(base).origin) faults.push(`asks another site: ${url}`);
  });
  page.on("response", async (response) => bodies.push({ url: response.url(), text: await response.text().catch(() => "") }));
  await page.addInitScript(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
  });
  await page.goto(`${base}${path}${hash}`);
  const opened = { page, context, faults, bodies };
  return {
    ...opened,
    go: (to) => go(page, to),
    settle: () => settle(page),
    toast: (text) => page.locator(".toast", { hasText: text }).first().waitFor(),
    axe: (what, rules) => axe(page, what, rules),
    /** Nothing was noted that must not happen. */
    done: async () => {
      await page.unrouteAll({ behavior: "ignoreErrors" });
      const violations = await page.evaluate(() => window.violations);
      assert.deepEqual([...faults, ...violations], []);
      assert.deepEqual(await context.cookies(), [], "the console sets no cookie");
      await context.close();
    },
  };
}

/** The view has its data, or says why not. */
export const settle = (page) => page.locator("main[aria-busy=false], main.signin").first().waitFor();

export async function go(page, hash) {
  await page.evaluate(
    (to) =>
      new Promise((resolve) => {
        if (location.hash === to) return resolve();
        // The page hears of it first, and paints before the next turn.
        window.addEventListener("hashchange", () => setTimeout(resolve), { once: true });
        location.hash = to;
      }),
    hash,
  );
  await settle(page);
}

/** Without `rules`, all that axe-core has. */
export async function axe(page, what, rules) {
  const found = await page.evaluate(`${AXE}; axe.run({ resultTypes: ["violations"]${rules ? `, runOnly: ${JSON.stringify(rules)}` : ""} }).then((results) => results.violations.map((one) => one.id + ": " + one.nodes.slice(0, 3).map((node) => node.target + " " + node.failureSummary).join("; ")))`);
  assert.deepEqual(found, [], `axe-core on ${what}`);
}

/** No part of the page is wider than the window: a phone would scroll it sideways. */
export async function fits(page, what) {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(over <= 0, `${what} is ${over} px too wide`);
}

/** Asks the operator's API, past the page. */
export async function api(path, { base = rig.admin, method = "GET", token, body, headers = {} } = {}) {
  const sent = { ...headers };
  if (token) sent.Authorization = `Bearer ${token}`;
  if (body) sent["Content-Type"] = "application/json";
  const answer = await fetch(`${base}/v1/${path}`, { method, headers: sent, body: body && JSON.stringify(body) });
  const text = await answer.text();
  return { status: answer.status, ...(text.startsWith("{") ? JSON.parse(text) : {}) };
}

export const lane = async (name) => (await api("functions")).functions.find((one) => one.function === name);

/** Calls `probe` until it returns a value. */
export async function eventually(what, probe, patience = PATIENCE_MS) {
  const begun = Date.now();
  for (;;) {
    const found = await probe();
    if (found) return found;
    assert.ok(Date.now() - begun < patience, `waited in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export const button = (page, name) => page.getByRole("button", { name });

/** Presses the button of the open dialog, after typing what it asks for. */
export async function confirm(page, name, word) {
  const dialog = page.locator("dialog[open]");
  const press = dialog.getByRole("button", { name });
  await dialog.locator(".what").waitFor();
  if (word !== undefined) {
    assert.ok(await press.isDisabled(), "the button waits for the word");
    await dialog.locator("input[name=word]").fill("something else");
    assert.ok(await press.isDisabled(), "the button waits for the right word");
    await dialog.locator("input[name=word]").fill(word);
  }
  const said = await dialog.locator(".what").innerText();
  await press.click();
  return said;
}
