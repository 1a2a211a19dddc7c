// graphile-worker on PostgreSQL, with what its documentation calls "enhanced" throughput: a local queue and batches.

import { makeWorkerUtils, run, Logger } from "graphile-worker";
import pg from "pg";
import * as postgres from "../postgres.mjs";

export const name = "graphile-worker, PostgreSQL";
export const { needs, wal_bytes } = postgres;
export const takes = "object";

const TASK = "deliver";

// Connections of the callers: commits of several share a sync, and each is a process of PostgreSQL.
const CONNECTIONS = 32;
const WORKER_CONNECTIONS = 8;
// Jobs that are fetched ahead at most.
const LOCAL_QUEUE = 512;

const logger = new Logger(() => () => {});

export const start = (scene) =>
  postgres.start(scene, async (where) => {
    const utils = await makeWorkerUtils({ connectionString: postgres.url(where), logger });
    await utils.migrate();
    await utils.release();
  });

function pool(where, max) {
  const made = new pg.Pool({ connectionString: postgres.url(where), max });
  // Without a listener an error would end the process. What fails is told to the caller anyway.
  made.on("error", () => {});
  return made;
}

export async function open_client(where) {
  const utils = await makeWorkerUtils({ pgPool: pool(where, CONNECTIONS), logger });
  return { send: (event) => utils.addJob(TASK, event, { maxAttempts: 12 }) };
}

export async function work(where, deliver, in_flight) {
  const worker = {
    concurrentJobs: in_flight,
    localQueue: { size: LOCAL_QUEUE },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  };
  await run({
    pgPool: pool(where, WORKER_CONNECTIONS),
    logger,
    noHandleSignals: true,
    taskList: { [TASK]: (event) => deliver(JSON.stringify(event)) },
    preset: { worker },
  });
}
