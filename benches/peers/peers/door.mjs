// sendoff's door in front of a store that does nothing, a process of `cargo bench`: what HTTP alone costs.

export const name = "a door that stores nothing";
export { needs, takes } from "./sendoff.mjs";
export { open_client } from "./sendoff-bare.mjs";
export const delivers = false;
export const stores = false;

export async function start(scene, { bench }) {
  const door = scene.system(bench, ["role", "door"]);
  const address = await scene.until(async () => {
    const said = door.said();
    if (!said.endsWith("\n")) throw new Error("it has not said its address");
    return said.trim();
  }, door);
  return { address };
}
