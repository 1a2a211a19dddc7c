// The stand-in Lambda: says 202 to every request and notes which events have come. No more of HTTP than must be, as
// it shares the machine with what is measured.

import { createServer } from "node:net";
import { once } from "node:events";
import { number } from "./event.mjs";
import { now, role } from "./role.mjs";

const HEAD_END = Buffer.from("\r\n\r\n");
const ANSWER = Buffer.from(
  "HTTP/1.1 202 Accepted\r\nx-amzn-RequestId: 00000000-0000-4000-8000-000000000000\r\ncontent-length: 0\r\n\r\n",
);

let seen = new Uint8Array(1 << 20);
let different = 0;
let repeated = 0;
let waiting;

function arrived(n) {
  if (n >= seen.length) {
    const larger = new Uint8Array(2 * n);
    larger.set(seen);
    seen = larger;
  }
  if (seen[n]) {
    repeated += 1;
    return;
  }
  seen[n] = 1;
  different += 1;
  if (waiting && different >= waiting.total) waiting.done({ at: now(), wall: Date.now() / 1e3, repeated });
}

const server = createServer({ noDelay: true }, (socket) => {
  let left = Buffer.alloc(0);
  socket.on("data", (data) => {
    left = left.length ? Buffer.concat([left, data]) : data;
    for (;;) {
      const head = left.indexOf(HEAD_END);
      if (head < 0) return;
      const length = Number(/\r\ncontent-length: *(\d+)/i.exec(left.latin1Slice(0, head))?.[1]);
      const body = head + HEAD_END.length;
      if (!(left.length >= body + length)) return;
      arrived(number(left, body));
      left = left.subarray(body + length);
      socket.write(ANSWER);
    }
  });
  socket.on("error", () => {});
});

role({
  async start() {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return { port: server.address().port };
  },
  // Answers when so many different events have come since the start.
  total({ total }) {
    return new Promise((done) => {
      if (different >= total) done({ at: now(), wall: Date.now() / 1e3, repeated });
      else waiting = { total, done };
    });
  },
  so_far: () => ({ different, repeated }),
});
