// RabbitMQ: a quorum queue, publisher confirms, manual acknowledgements.

import { mkdirSync, writeFileSync } from "node:fs";
import amqp from "amqplib";
import { find, free_port } from "../scene.mjs";

export const name = "RabbitMQ quorum queue, confirms";
export const needs = { "rabbitmq-server": "rabbitmq-server", epmd: "erlang-base" };
export const takes = "bytes";

const QUEUE = "events";

export async function start(scene) {
  const [port, dist, epmd_port] = [await free_port(), await free_port(), await free_port()];
  const home = scene.path("rabbitmq");
  mkdirSync(home);
  // Empty ones of our own, or those of the system would count.
  for (const file of ["plugins", "rabbitmq.conf", "env.conf"]) writeFileSync(`${home}/${file}`, file === "plugins" ? "[]." : "");
  const env = {
    PATH: `${process.env.PATH}:/usr/sbin`,
    LANG: "C.UTF-8",
    HOME: home,
    ERL_EPMD_ADDRESS: "127.0.0.1",
    ERL_EPMD_PORT: String(epmd_port),
    RABBITMQ_NODENAME: "bench@localhost",
    RABBITMQ_NODE_IP_ADDRESS: "127.0.0.1",
    RABBITMQ_NODE_PORT: String(port),
    RABBITMQ_DIST_PORT: String(dist),
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: "-kernel inet_dist_use_interface {127,0,0,1}",
    RABBITMQ_MNESIA_BASE: `${home}/data`,
    RABBITMQ_LOG_BASE: `${home}/log`,
    RABBITMQ_ENABLED_PLUGINS_FILE: `${home}/plugins`,
    RABBITMQ_CONFIG_FILE: `${home}/rabbitmq.conf`,
    RABBITMQ_CONF_ENV_FILE: `${home}/env.conf`,
  };
  // As a child of ours: RabbitMQ would start one that outlives it.
  scene.system(find("epmd"), ["-address", "127.0.0.1", "-port", String(epmd_port)], { env });
  // Not the script of the same name on the PATH, which insists on being root or `rabbitmq`.
  const server = scene.system("/usr/lib/rabbitmq/bin/rabbitmq-server", [], { env });
  await scene.until(async () => (await connect({ port })).close(), server, 120);
  return { port };
}

const connect = ({ port }) => amqp.connect({ hostname: "127.0.0.1", port });

async function channel(where, kind) {
  const channel = await (await connect(where))[kind]();
  await channel.assertQueue(QUEUE, { durable: true, arguments: { "x-queue-type": "quorum" } });
  return channel;
}

export async function open_client(where) {
  const one = await channel(where, "createConfirmChannel");
  const send = (event) =>
    new Promise((done, failed) => {
      one.sendToQueue(QUEUE, event, { persistent: true }, (error) => (error ? failed(error) : done()));
    });
  return { send };
}

export async function work(where, deliver, in_flight) {
  const one = await channel(where, "createChannel");
  // More than are delivered at once, so that the next are there when one is done.
  await one.prefetch(4 * in_flight);
  await one.consume(QUEUE, async (message) => {
    try {
      await deliver(message.content);
      one.ack(message);
    } catch {
      one.nack(message);
    }
  });
}
