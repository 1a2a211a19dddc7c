// PostgreSQL as Debian sets it, in a directory of the scene: it syncs before it answers a commit.

import { mkdirSync } from "node:fs";
import pg from "pg";
import { find, free_port } from "./scene.mjs";

export const needs = { initdb: "postgresql", postgres: "postgresql" };

// PostgreSQL refuses to be root.
export const USER = "postgres";

// Starts a server, and tries `ready` until it succeeds.
export async function start(scene, ready) {
  const port = await free_port();
  const data = scene.path("postgres");
  mkdirSync(data, { mode: 0o700 });
  scene.give(data, USER);
  const env = { PATH: process.env.PATH, LANG: "C.UTF-8" };
  const user = USER;
  await scene.run(find("initdb"), ["--pgdata", data, "--username", USER, "--auth", "trust", "--no-sync"], { user, env });
  const settings = { listen_addresses: "127.0.0.1", port, unix_socket_directories: data };
  const args = Object.entries(settings).flatMap(([key, value]) => ["-c", `${key}=${value}`]);
  // SIGINT: it stops without waiting for its clients.
  const server = scene.system(find("postgres"), ["-D", data, ...args], { user, env, stop: "SIGINT" });
  await scene.until(() => ready({ port }), server);
  return { port };
}

export const url = ({ port }) => `postgres://${USER}@127.0.0.1:${port}/postgres`;

// The bytes that the server has written to its write-ahead log so far.
export async function wal_bytes(where) {
  const client = new pg.Client({ connectionString: url(where) });
  await client.connect();
  const { rows } = await client.query("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::text AS bytes");
  await client.end();
  return Number(rows[0].bytes);
}
