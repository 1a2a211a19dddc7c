// What one measurement runs in: processes, free ports and a directory, all gone when it ends, however it ends.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdtempSync, openSync, closeSync, readFileSync, rmSync, chmodSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { tree } from "./measure.mjs";

const open = new Set();

// How long a process may take to stop when asked, before it is killed.
const GRACE_MS = 10_000;

// Calls that make data durable. An strace with a seccomp filter stops a process at these alone, so it costs little.
const SYNCS = "fsync,fdatasync,msync,sync,syncfs,sync_file_range";

export class Scene {
  #children = [];
  #directory;
  #traced;

  // `traced`: note every sync of the system's processes, for `syncs`.
  constructor(below, traced = false) {
    // On the same disk as everything else that is built here: /tmp may be memory, where syncs cost nothing.
    this.#directory = mkdtempSync(join(below, "peers-"));
    // Some servers refuse to be root and run as a user of their own.
    chmodSync(this.#directory, 0o755);
    this.#traced = traced;
    open.add(this);
  }

  path(name) {
    return join(this.#directory, name);
  }

  // Starts a process of the system that is measured. `user`: whom it runs as if this is root. `stop`: the signal that
  // makes it stop in order.
  system(program, args, { user, env, stop = "SIGTERM" } = {}) {
    const trace = this.path(`syncs-${this.#children.length}`);
    if (this.#traced) {
      const options = ["-D", "-f", "--seccomp-bpf", "-qq", "-ttt", "-e", `trace=${SYNCS}`, "-e", "signal=none", "-o", trace];
      args = [...options, program, ...args];
      program = "strace";
      writeFileSync(trace, "");
      this.give(trace, user);
    }
    return this.#spawn(program, args, { ...whom(user), env, stop, counts: true, trace: this.#traced ? trace : undefined });
  }

  // Starts one of the scripts beside this and sends it `first`; it answers once it is ready. `counts`: whether it belongs to the system.
  async node(script, first, { counts = false } = {}) {
    const file = new URL(script, import.meta.url).pathname;
    const child = this.#spawn(process.execPath, [file], { stop: "SIGKILL", counts, ipc: true });
    child.ready = await child.ask(first);
    return child;
  }

  #spawn(program, args, { uid, gid, env, stop, counts, trace, ipc = false }) {
    const log = this.path(`log-${this.#children.length}`);
    const out = openSync(log, "w");
    if (uid !== undefined) chownSync(log, uid, gid);
    const stdio = ["ignore", out, out, ...(ipc ? ["ipc"] : [])];
    // In a group of its own: Ctrl-C is for the driver alone, which then stops everything in order.
    const child = spawn(program, args, { cwd: this.#directory, env: env ?? process.env, uid, gid, stdio, detached: true });
    closeSync(out);
    const said = () => readFileSync(log, "utf8").slice(-2_000);
    const ended = once(child, "exit").then(([code, signal]) => {
      throw new Error(`${program} ended (${signal ?? code}):\n${said()}`);
    });
    ended.catch(() => {});
    child.on("error", () => {});
    const ask = async (what) => {
      child.send(what);
      const [answer] = await Promise.race([once(child, "message"), ended]);
      if (answer.failed) throw new Error(answer.failed);
      return answer;
    };
    const own = { pid: child.pid, child, stop, counts, trace, ended, ask, said };
    this.#children.push(own);
    return own;
  }

  // Runs a program to its end, for set-up.
  async run(program, args, { user, env } = {}) {
    const one = this.#spawn(program, args, { ...whom(user), env, stop: "SIGKILL", counts: false });
    const [code] = one.child.exitCode === null ? await once(one.child, "exit") : [one.child.exitCode];
    if (code !== 0) throw new Error(`${program} ended with ${code}:\n${one.said()}`);
  }

  // Makes a file or directory the user's, if this is root.
  give(path, user) {
    const { uid, gid } = whom(user);
    if (uid !== undefined) chownSync(path, uid, gid);
  }

  // Tries until it does not fail: a server says in its own way that it is ready.
  async until(what, child, seconds = 60) {
    for (const end = Date.now() + seconds * 1_000; ; ) {
      try {
        return await what();
      } catch (error) {
        if (Date.now() > end) throw new Error(`not ready in ${seconds} s: ${error.message}\n${child.said()}`);
      }
      await Promise.race([sleep(50), child.ended]);
    }
  }

  // Processes of the system, its workers too.
  system_pids() {
    return this.#children.filter((one) => one.counts).map((one) => one.pid);
  }

  // Syncs between two moments of the wall clock, in seconds.
  syncs(from, to) {
    let count = 0;
    for (const { trace } of this.#children) {
      if (!trace || !existsSync(trace)) continue;
      for (const line of readFileSync(trace, "utf8").split("\n")) {
        const at = Number(line.split(/\s+/)[1]);
        // A call that was interrupted in the record has two lines.
        if (at >= from && at <= to && !line.includes("resumed>")) count += 1;
      }
    }
    return count;
  }

  async end() {
    if (!open.has(this)) return;
    for (const one of this.#children.toReversed()) {
      const all = tree([one.pid]);
      const over = one.ended.catch(() => {});
      if (one.child.exitCode === null && one.child.signalCode === null) {
        one.child.kill(one.stop);
        await Promise.race([over, sleep(GRACE_MS, undefined, { ref: false })]);
      }
      for (const pid of [-one.pid, ...all]) kill(pid);
      await over;
    }
    open.delete(this);
    rmSync(this.#directory, { recursive: true, force: true, maxRetries: 5 });
  }
}

export async function end_all() {
  await Promise.all([...open].map((scene) => scene.end()));
}

export async function free_port() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

// Where a program is, looked for also where Debian keeps servers that are not on the PATH.
export function find(program) {
  const places = (process.env.PATH ?? "").split(":");
  for (let version = 20; version > 10; version -= 1) places.unshift(`/usr/lib/postgresql/${version}/bin`);
  places.push("/usr/sbin", "/usr/lib/rabbitmq/bin");
  return places.map((place) => join(place, program)).find((path) => existsSync(path));
}

// The ids of a user, if this is root and can become that user.
function whom(user) {
  if (!user || process.getuid() !== 0) return {};
  const line = readFileSync("/etc/passwd", "utf8").split("\n").find((line) => line.startsWith(`${user}:`));
  if (!line) throw new Error(`no user ${user}`);
  const [, , uid, gid] = line.split(":");
  return { uid: Number(uid), gid: Number(gid) };
}

function kill(pid) {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It is gone.
  }
}
