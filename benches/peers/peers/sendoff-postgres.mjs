// sendoff with its outbox on PostgreSQL, called over bare sockets.

import * as postgres from "../postgres.mjs";
import { serve } from "./sendoff.mjs";

export const name = "sendoff on PostgreSQL, called over bare sockets";
export const { needs, wal_bytes } = postgres;
export { open_client } from "./sendoff-bare.mjs";
export { takes, work } from "./sendoff.mjs";

export async function start(scene, programs) {
  const where = await postgres.start(scene, (where) => postgres.wal_bytes(where));
  const env = { PATH: process.env.PATH };
  await scene.run(programs.sendoff, ["postgres", "migrate", "--url", postgres.url(where)], { env });
  const settings = ["outbox.store=postgres", `outbox.postgres.url=${postgres.url(where)}`];
  return { ...where, ...(await serve(scene, programs, settings)) };
}
