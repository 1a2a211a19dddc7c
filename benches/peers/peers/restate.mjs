// Restate: a one-way call of a service that delivers within a durable step. It syncs its log by default.

import { once } from "node:events";
import { createServer } from "node:http2";
import { createRequire } from "node:module";
import { Pool, request } from "undici";
import { free_port } from "../scene.mjs";

export const name = "Restate";
export const needs = {};
export const takes = "bytes";
// It accepts for services alone that it has been told of, by the worker.
export const accepts_with_worker = true;

const JSON_TYPE = { "content-type": "application/json" };

// On two cores: the default of 24 is for larger machines.
const PARTITIONS = 4;

export async function start(scene, { lambda_url }) {
  const [fabric, ingress, admin] = [await free_port(), await free_port(), await free_port()];
  // The program itself, not the script that starts it.
  const program = createRequire(import.meta.url).resolve(
    `@restatedev/restate-server-${process.platform}-${process.arch}/bin/restate-server`,
  );
  const args = ["--bind-ip", "127.0.0.1", "--listen-mode", "tcp", "--no-logo"];
  args.push("--base-dir", scene.path("restate"), "--node-name", "bench");
  const env = {
    PATH: process.env.PATH,
    RESTATE_DISABLE_TELEMETRY: "true",
    RESTATE_DEFAULT_NUM_PARTITIONS: String(PARTITIONS),
    RESTATE_BIND_PORT: String(fabric),
    RESTATE_INGRESS__BIND_PORT: String(ingress),
    RESTATE_ADMIN__BIND_PORT: String(admin),
  };
  const server = scene.system(program, args, { env });
  await scene.until(async () => {
    for (const url of [`http://127.0.0.1:${admin}/health`, `http://127.0.0.1:${ingress}/restate/health`]) {
      const answer = await request(url);
      await answer.body.dump();
      if (answer.statusCode !== 200) throw new Error(`status ${answer.statusCode}`);
    }
  }, server);
  // Where nothing is to be delivered, it is due in an hour.
  return { ingress, admin, path: `/dispatcher/deliver/send${lambda_url ? "" : "?delay=1h"}` };
}

export async function open_client({ ingress, path }, in_flight) {
  const pool = new Pool(`http://127.0.0.1:${ingress}`, { connections: in_flight, pipelining: 1 });
  const send = async (event) => {
    const answer = await pool.request({ method: "POST", path, headers: JSON_TYPE, body: event });
    const said = await answer.body.text();
    if (answer.statusCode !== 202) throw new Error(`not accepted: ${answer.statusCode} ${said}`);
  };
  return { send };
}

export async function work({ admin }, deliver) {
  // The SDK is made for Node 22, which has this.
  Promise.withResolvers ??= () => {
    const parts = {};
    parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
    return parts;
  };
  const { createEndpointHandler, service } = await import("@restatedev/restate-sdk");
  const handlers = { deliver: (context, event) => context.run("invoke", () => deliver(JSON.stringify(event))) };
  const dispatcher = service({ name: "dispatcher", handlers });
  const server = createServer(createEndpointHandler({ services: [dispatcher] })).listen(0, "127.0.0.1");
  await once(server, "listening");
  const uri = `http://127.0.0.1:${server.address().port}`;
  const register = { method: "POST", headers: JSON_TYPE, body: JSON.stringify({ uri }) };
  const answer = await request(`http://127.0.0.1:${admin}/deployments`, register);
  const said = await answer.body.text();
  if (answer.statusCode >= 300) throw new Error(`not registered: ${said}`);
}
