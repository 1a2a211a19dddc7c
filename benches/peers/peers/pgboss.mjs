// pg-boss on PostgreSQL.

import { setTimeout as sleep } from "node:timers/promises";
import PgBoss from "pg-boss";
import * as postgres from "../postgres.mjs";

export const name = "pg-boss, PostgreSQL";
export const { needs, wal_bytes } = postgres;
export const takes = "object";

const QUEUE = "events";

// Connections of the callers: commits of several share a sync, and each is a process of PostgreSQL.
const CONNECTIONS = 32;
// Fetches of the worker that overlap, so that calls go on while one fetches or completes, and what one takes at most.
const FETCHERS = 4;
const BATCH = 64;
const IDLE_MS = 20;

export const start = (scene) =>
  postgres.start(scene, async (where) => {
    const boss = await open(where, 1);
    await boss.createQueue(QUEUE);
    await boss.stop({ graceful: false });
  });

async function open({ port }, max) {
  const boss = new PgBoss({ host: "127.0.0.1", port, user: postgres.USER, database: "postgres", max });
  // Without a listener an error would end the process; what fails is told to the caller anyway.
  boss.on("error", () => {});
  await boss.start();
  return boss;
}

export async function open_client(where) {
  const boss = await open(where, CONNECTIONS);
  const options = { retryLimit: 12, retryBackoff: true };
  return { send: (event) => boss.send(QUEUE, event, options) };
}

// Not `boss.work`: its workers rest for half a second at least between batches.
export async function work(where, deliver) {
  const boss = await open(where, 2 * FETCHERS);
  const fetcher = async () => {
    for (;;) {
      const jobs = await boss.fetch(QUEUE, { batchSize: BATCH, priority: false });
      if (jobs.length === 0) await sleep(IDLE_MS);
      const done = [];
      const failed = [];
      const handle = ({ id, data }) => deliver(JSON.stringify(data)).then(() => done.push(id), () => failed.push(id));
      await Promise.all(jobs.map(handle));
      if (done.length > 0) await boss.complete(QUEUE, done);
      if (failed.length > 0) await boss.fail(QUEUE, failed);
    }
  };
  for (let n = 0; n < FETCHERS; n += 1) fetcher();
}
