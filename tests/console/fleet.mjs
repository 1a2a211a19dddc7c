// The daemons that share an outbox: each of them shows all, and which one it is itself.

import assert from "node:assert/strict";
import { browser, fits, open, rig } from "./browser.mjs";

for (const [name, base] of Object.entries(rig.daemons)) {
  const tab = await open({ base });
  await tab.page.getByRole("heading", { name: "Daemons that share this outbox" }).waitFor();
  for (const other of Object.keys(rig.daemons)) {
    const row = tab.page.getByRole("row", { name: new RegExp(`^${other}\\b`) });
    await row.getByText("answers").waitFor();
    assert.equal((await row.innerText()).includes("this one"), other === name, `${other} on ${name}`);
  }
  await tab.axe(`the fleet on ${name}`);
  await tab.go(`#/events/${rig.event}`);
  await tab.page.locator(".timeline").getByText("Delivered").waitFor();
  await fits(tab.page, "an event of a fleet");
  await tab.done();
}
await browser.close();
