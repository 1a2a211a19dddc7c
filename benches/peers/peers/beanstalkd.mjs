// beanstalkd that syncs its log for each command.

import { mkdirSync } from "node:fs";
import Jackd from "jackd";
import { find, free_port } from "../scene.mjs";

export const name = "beanstalkd -f0";
export const needs = { beanstalkd: "beanstalkd" };
export const takes = "object";

export async function start(scene) {
  const port = await free_port();
  const log = scene.path("beanstalkd");
  mkdirSync(log);
  const server = scene.system(find("beanstalkd"), ["-l", "127.0.0.1", "-p", String(port), "-b", log, "-f0"]);
  await scene.until(async () => (await connect({ port })).quit(), server);
  return { port };
}

const connect = ({ port }) =>
  new Promise((done, failed) => {
    const one = new Jackd();
    one.socket.once("error", failed);
    one.connect({ host: "127.0.0.1", port }).then(done, failed);
  });

// A connection for each caller: the server takes one command of a connection at a time.
const connections = (where, count) => Promise.all(Array.from({ length: count }, () => connect(where)));

export async function open_client(where, in_flight) {
  const idle = await connections(where, in_flight);
  const send = async (event) => {
    const one = idle.pop();
    // As text: jackd would write a buffer out as a JSON array of its bytes.
    await one.put(JSON.stringify(event));
    idle.push(one);
  };
  return { send };
}

export async function work(where, deliver, in_flight) {
  const one_by_one = async (connection) => {
    for (;;) {
      const { id, payload } = await connection.reserve();
      try {
        await deliver(payload);
        await connection.delete(id);
      } catch {
        await connection.release(id);
      }
    }
  };
  for (const connection of await connections(where, in_flight)) one_by_one(connection);
}
