// BullMQ on a Redis that syncs its log before it answers.

import { mkdirSync } from "node:fs";
import { Queue, Worker } from "bullmq";
import Redis from "ioredis";
import { find, free_port } from "../scene.mjs";

export const name = "BullMQ, Redis appendfsync always";
export const needs = { "redis-server": "redis-server" };
export const takes = "object";

export async function start(scene) {
  const port = await free_port();
  const dir = scene.path("redis");
  mkdirSync(dir);
  const settings = { bind: "127.0.0.1", port, dir, appendonly: "yes", appendfsync: "always", save: "" };
  const args = Object.entries(settings).flatMap(([key, value]) => [`--${key}`, String(value)]);
  const redis = scene.system(find("redis-server"), args);
  await scene.until(async () => {
    const one = new Redis({ host: "127.0.0.1", port, lazyConnect: true, retryStrategy: null });
    one.on("error", () => {});
    try {
      await one.connect();
      await one.ping();
    } finally {
      one.disconnect();
    }
  }, redis);
  return { port };
}

// BullMQ wants commands of a worker to be retried for ever.
const connect = ({ port }) => new Redis({ host: "127.0.0.1", port, maxRetriesPerRequest: null });

export async function open_client(where) {
  const queue = new Queue("events", { connection: connect(where) });
  await queue.waitUntilReady();
  const options = { attempts: 12, backoff: { type: "exponential", delay: 500 }, removeOnComplete: true };
  return { send: (event) => queue.add("event", event, options) };
}

export async function work(where, deliver, in_flight) {
  const handle = (job) => deliver(JSON.stringify(job.data));
  const worker = new Worker("events", handle, { connection: connect(where), concurrency: in_flight });
  await worker.waitUntilReady();
}
