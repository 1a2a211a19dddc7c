// The table and the JSON of a run.

import { readFileSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";

const COLUMNS = [
  ["accept/s", "accept_per_second", 0],
  ["p99 ms", "accept_p99_ms", 1],
  ["road/s", "road_per_second", 0],
  ["CPU s per 1,000 (road)", "road_cpu_seconds_per_1000", 3],
  ["syncs per 1,000 (road)", "road_syncs_per_1000", 0],
  ["WAL bytes an event (road)", "road_wal_bytes", 0],
  ["peak PSS MiB (road)", "road_peak_pss_mib", 0],
  ["of it worker", "road_worker_pss_mib", 0],
  ["client's cores (accept)", "accept_client_cores", 2],
];

export function median(values) {
  const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}

// `samples`: by name of the system, one object of figures a measurement.
export function table(samples) {
  const rows = [["", ...COLUMNS.map(([title]) => title)], ["---", ...COLUMNS.map(() => "---:")]];
  for (const [name, of_one] of samples) {
    const shown = COLUMNS.map(([, key, digits]) => {
      const value = median(of_one.map((sample) => sample[key]));
      return value === undefined ? "" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    });
    rows.push([name, ...shown]);
  }
  return rows.map((row) => `| ${row.join(" | ")} |`).join("\n");
}

export const load_average = () => Number(readFileSync("/proc/loadavg", "utf8").split(" ")[0]);

export function write(path, samples, conditions) {
  const systems = Object.fromEntries(samples);
  writeFileSync(path, `${JSON.stringify({ bench: "peers", cores: cpus().length, ...conditions, systems }, null, 2)}\n`);
}
