// The load generator: so many callers at once, each of which hands over an event, waits until it is acknowledged as
// durable, and hands over the next.

import { maker } from "./event.mjs";
import { now, role } from "./role.mjs";

let client;
let make;

async function send({ first, count, in_flight }) {
  const took = new Float64Array(count);
  let next = 0;
  const caller = async () => {
    while (next < count) {
      const mine = next++;
      const event = make(first + mine);
      const began = now();
      await client.send(event);
      took[mine] = now() - began;
    }
  };
  const cpu = process.cpuUsage();
  const [began, wall] = [now(), Date.now() / 1e3];
  await Promise.all(Array.from({ length: in_flight }, caller));
  const seconds = (now() - began) / 1e3;
  const { user, system } = process.cpuUsage(cpu);
  took.sort();
  const at = (quantile) => took[Math.min(count - 1, Math.floor(count * quantile))];
  return { began, wall, seconds, p50_ms: at(0.5), p99_ms: at(0.99), cores: (user + system) / 1e6 / seconds };
}

role({
  async start({ peer, where, bytes, in_flight }) {
    const { open_client, takes } = await import(`./peers/${peer}.mjs`);
    make = maker(bytes, takes);
    client = await open_client(where, in_flight);
  },
  send,
});
