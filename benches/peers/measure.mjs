// What processes cost, from /proc (proc(5)): of each process that was started, and of all that it started itself.

import { readdirSync, readFileSync } from "node:fs";

// USER_HZ, 100 on every Linux architecture that Node runs on.
const TICKS_PER_SECOND = 100;

// How often memory is looked at: seldom enough that looking costs nothing.
const LOOK_EVERY_MS = 250;

// The roots and everything below them, as far as it lives.
export function tree(roots) {
  const parents = new Map();
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    const fields = stat(name);
    if (fields) parents.set(Number(name), Number(fields[1]));
  }
  const within = new Set(roots.filter((pid) => parents.has(pid)));
  for (let before = -1; before !== within.size; ) {
    before = within.size;
    for (const [pid, parent] of parents) if (within.has(parent)) within.add(pid);
  }
  return [...within];
}

// Seconds of user and system time, those of children that have ended too. Exact to 10 ms a process.
export function cpu_seconds(roots) {
  let ticks = 0;
  for (const pid of tree(roots)) {
    const fields = stat(pid);
    // utime, stime, cutime, cstime
    if (fields) ticks += fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
  }
  return ticks / TICKS_PER_SECOND;
}

// Seconds that all cores together were not idle since the machine was started.
export function busy_seconds() {
  const [user, nice, system, , , irq, softirq, steal] = read("/proc/stat").split("\n", 1)[0].split(/\s+/).slice(1).map(Number);
  return (user + nice + system + irq + softirq + steal) / TICKS_PER_SECOND;
}

// Proportional set size in MiB: pages that processes share count once.
function pss_mib(roots) {
  let kib = 0;
  for (const pid of tree(roots)) {
    const found = /^Pss:\s+(\d+)/m.exec(read(`/proc/${pid}/smaps_rollup`));
    if (found) kib += Number(found[1]);
  }
  return kib / 1024;
}

// Looks at memory until `stop`, which returns the peak in MiB.
export function watch_memory(roots) {
  let peak = 0;
  const look = () => (peak = Math.max(peak, pss_mib(roots)));
  look();
  const timer = setInterval(look, LOOK_EVERY_MS);
  return {
    stop() {
      clearInterval(timer);
      look();
      return peak;
    },
  };
}

// The fields after the name, which may hold anything.
function stat(pid) {
  const text = read(`/proc/${pid}/stat`);
  return text && text.slice(text.lastIndexOf(")") + 2).split(" ");
}

function read(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
