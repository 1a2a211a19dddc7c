// What a user would pick instead of sendoff, and sendoff, under the same load: see README.md.

import { mkdirSync } from "node:fs";
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { busy_seconds, cpu_seconds, watch_memory } from "./measure.mjs";
import { load_average, table, write } from "./report.mjs";
import { end_all, find, Scene } from "./scene.mjs";

// In the order in which they are measured in a round.
const PEERS = ["door", "sdk", "sendoff", "sendoff-bare", "sendoff-no-key", "bullmq", "rabbitmq", "restate", "beanstalkd", "pgboss", "graphile", "sendoff-postgres"];

const { values: given } = parseArgs({
  options: {
    sendoff: { type: "string", default: "target/release/sendoff" },
    bench: { type: "string", default: "" },
    only: { type: "string" },
    rounds: { type: "string", default: "3" },
    events: { type: "string", default: "20000" },
    warm: { type: "string", default: "2000" },
    "in-flight": { type: "string", default: "64" },
    bytes: { type: "string", default: "1024" },
    quiet: { type: "string" },
    out: { type: "string", default: "target/bench" },
  },
});
const [rounds, events, warm, bytes] = [given.rounds, given.events, given.warm, given.bytes].map(Number);
const in_flight = Number(given["in-flight"]);
const out = resolve(given.out);
const programs = { sendoff: resolve(given.sendoff), bench: given.bench && resolve(given.bench) };

// A road that gets no further for so long is broken.
const STALLED_MS = 60_000;

// On a machine that is shared: for how long it must be quiet, how often that is waited for, and how often a disturbed sample
// is taken again.
const QUIET_MS = 2_000;
const WAITS = 5;
const RETAKES = 1;

let stopping = false;
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.once(signal, async () => {
    console.error(`${signal}: stopping everything`);
    stopping = true;
    await end_all();
    process.exit(130);
  });
}

// Cores that processes of others take from now on: the figures of a measurement with many are not worth much.
function others_since() {
  const own = () => busy_seconds() - cpu_seconds([process.pid]);
  const [began, before] = [Date.now(), own()];
  return () => Math.max(0, ((own() - before) * 1e3) / (Date.now() - began));
}

// Takes a sample. With --quiet, when others take no more cores than that, and again if they did meanwhile; what counts is
// the one with the least disturbance, however it turned out.
async function undisturbed(what) {
  const limit = Number(given.quiet ?? Infinity);
  let best;
  for (let left = RETAKES; ; left -= 1) {
    for (let waits = WAITS; given.quiet && waits > 0; waits -= 1) {
      const others = others_since();
      await sleep(QUIET_MS);
      if (others() <= limit) break;
    }
    const sample = await what();
    if (!best || sample.others_cores < best.others_cores) best = sample;
    if (best.others_cores <= limit || left === 0) return best;
  }
}

// Runs `what` in a scene that is gone afterwards.
async function within(traced, what) {
  // What a signal has stopped must not go on with the next.
  if (stopping) return new Promise(() => {});
  const scene = new Scene(out, traced);
  try {
    return await what(scene);
  } finally {
    await scene.end();
  }
}

const load = (scene, peer, where, counts) =>
  scene.node("load.mjs", { what: "start", peer: peer.file, where, bytes, in_flight }, { counts });

// From the call to the acknowledgement, while nothing is delivered.
async function accept(peer) {
  return await within(false, async (scene) => {
    const where = await peer.start(scene, programs);
    if (peer.accepts_with_worker) {
      await scene.node("work.mjs", { what: "start", peer: peer.file, where, lambda_url: "http://127.0.0.1", in_flight });
    }
    const generator = await load(scene, peer, where);
    await generator.ask({ what: "send", first: 0, count: warm, in_flight });
    const [cpu, others] = [cpu_seconds(scene.system_pids()), others_since()];
    const sent = await generator.ask({ what: "send", first: warm, count: events, in_flight });
    const used = cpu_seconds(scene.system_pids()) - cpu;
    return {
      accept_per_second: events / sent.seconds,
      accept_p50_ms: sent.p50_ms,
      accept_p99_ms: sent.p99_ms,
      accept_cpu_seconds_per_1000: (used * 1_000) / events,
      accept_client_cores: sent.cores,
      others_cores: others(),
    };
  });
}

// From the first call to the last arrival at the stand-in.
async function road(peer, traced) {
  return await within(traced, async (scene) => {
    const standin = await scene.node("standin.mjs", { what: "start" });
    const lambda_url = `http://127.0.0.1:${standin.ready.port}`;
    const where = await peer.start(scene, { lambda_url, ...programs });
    const first = { what: "start", peer: peer.file, where, lambda_url, in_flight };
    const worker = peer.work && (await scene.node("work.mjs", first, { counts: true }));
    const generator = await load(scene, peer, where, peer.is_client);
    const through = async (first, count) => {
      const all = arrival(standin, first + count);
      const sent = await generator.ask({ what: "send", first, count, in_flight });
      return { sent, last: await all };
    };
    await through(0, warm);

    const pids = scene.system_pids();
    const wal = await peer.wal_bytes?.(where);
    const [cpu, memory, of_worker] = [cpu_seconds(pids), watch_memory(pids), watch_memory(worker ? [worker.pid] : [])];
    const others = others_since();
    const { sent, last } = await through(warm, events);
    const others_cores = others();
    const used = cpu_seconds(pids) - cpu;
    const [peak, worker_peak] = [memory.stop(), of_worker.stop()];
    const seconds = (last.at - sent.began) / 1e3;
    if (traced) return { road_syncs_per_1000: (scene.syncs(sent.wall, last.wall) * 1_000) / events, others_cores };
    const written = peer.wal_bytes && (await peer.wal_bytes(where)) - wal;
    return {
      road_per_second: events / seconds,
      road_cpu_seconds_per_1000: (used * 1_000) / events,
      road_peak_pss_mib: peak,
      road_wal_bytes: written && written / events,
      road_worker_pss_mib: worker ? worker_peak : undefined,
      road_repeated: last.repeated,
      others_cores,
    };
  });
}

// Waits until so many different events have arrived.
async function arrival(standin, total) {
  let [before, timer] = [-1, undefined];
  const stalled = new Promise((_, failed) => {
    let asked = Date.now();
    timer = setInterval(() => {
      const used = cpu_seconds([standin.pid]);
      // A stand-in that works gets events; asking it would mix with the answer that is awaited.
      if (used > before) [before, asked] = [used, Date.now()];
      else if (Date.now() - asked > STALLED_MS) failed(new Error(`no event arrived for ${STALLED_MS / 1e3} s`));
    }, 1_000);
  });
  try {
    return await Promise.race([standin.ask({ what: "total", total }), stalled]);
  } finally {
    clearInterval(timer);
  }
}

async function peers() {
  const found = [];
  for (const file of given.only?.split(",") ?? PEERS) {
    if (!PEERS.includes(file)) throw new Error(`--only ${file}: there are ${PEERS.join(", ")}`);
    const peer = { file, ...(await import(`./peers/${file}.mjs`)) };
    const missing = Object.entries(peer.needs).filter(([program]) => !find(program));
    for (const [program, of] of missing) console.error(`${peer.name}: left out, no ${program}; apt-get install ${of}`);
    if (file === "door" && !given.bench) console.error(`${peer.name}: left out, no --bench (README.md)`);
    else if (missing.length === 0) found.push(peer);
  }
  return found;
}

mkdirSync(out, { recursive: true });
const measured = await peers();
const samples = new Map(measured.map((peer) => [peer.name, []]));
const broken = new Set();
const before = load_average();
async function measure(peer, title, what) {
  if (broken.has(peer)) return;
  try {
    const sample = await undisturbed(() => what(peer));
    samples.get(peer.name).push(sample);
    const figures = Object.entries(sample).filter(([, value]) => value !== undefined);
    console.error(`${title}: ${peer.name}: ${figures.map(([key, value]) => `${key} ${Number(value.toPrecision(4))}`).join(", ")}`);
  } catch (error) {
    broken.add(peer);
    console.error(`${title}: ${peer.name}: left out from here, ${error.message}`);
  }
}
function report() {
  const conditions = { rounds, events, warm, bytes, in_flight, quiet: given.quiet, load_average: { before, now: load_average() } };
  write(`${out}/peers.json`, samples, conditions);
}
for (let round = 1; round <= rounds; round += 1) {
  for (const peer of measured) {
    if (peer.accepts !== false) await measure(peer, `round ${round}`, accept);
    if (peer.delivers !== false) await measure(peer, `round ${round}`, (peer) => road(peer, false));
  }
  // What there is survives an interruption.
  report();
}
// Alone, as being watched costs.
const stores = measured.filter((peer) => peer.stores !== false);
if (find("strace")) for (const peer of stores) await measure(peer, "syncs", (peer) => road(peer, true));
else console.error("syncs: not counted, no strace; apt-get install strace");
report();
console.log(`\n${table(samples)}`);
