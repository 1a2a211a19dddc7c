// sendoff again, called with no more of HTTP than must be: undici takes more of a core than most clients of the peers.

import { connect } from "node:net";
import { headers } from "./sendoff.mjs";

export const name = "sendoff, called over bare sockets";
export { needs, start, takes, work } from "./sendoff.mjs";

export async function open_client({ address }, in_flight, with_headers = headers) {
  const idle = await Promise.all(Array.from({ length: in_flight }, () => open(address, with_headers)));
  const send = async (event) => {
    const one = idle.pop();
    await one(event);
    idle.push(one);
  };
  return { send };
}

// A keep-alive connection: a function that sends one request and waits for its answer.
async function open(address, headers) {
  const [host, port] = address.split(":");
  const socket = connect({ host, port: Number(port), noDelay: true });
  await new Promise((done, failed) => socket.once("connect", done).once("error", failed));
  let waiting;
  let answer = "";
  socket.on("error", (error) => waiting?.failed(error));
  socket.on("data", (data) => {
    answer += data.latin1Slice();
    // An answer of 202 has no body, so it ends with its head.
    if (!answer.endsWith("\r\n\r\n")) return;
    const whole = answer;
    answer = "";
    if (whole.startsWith("HTTP/1.1 202")) waiting.done();
    else waiting.failed(new Error(`not accepted: ${whole}`));
  });
  const head = `POST /2015-03-31/functions/f0/invocations HTTP/1.1\r\nhost: ${address}\r\n`;
  return (event) =>
    new Promise((done, failed) => {
      waiting = { done, failed };
      const lines = Object.entries(headers()).map(([name, value]) => `${name}: ${value}\r\n`);
      const text = `${head}${lines.join("")}content-length: ${event.length}\r\n\r\n`;
      const request = Buffer.allocUnsafe(text.length + event.length);
      request.write(text, "latin1");
      event.copy(request, text.length);
      socket.write(request);
    });
}
