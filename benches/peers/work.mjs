// The worker of a peer that needs one: takes events and delivers each over HTTP, at most so many at once.

import { Pool } from "undici";
import { role } from "./role.mjs";

const PATH = "/2015-03-31/functions/f0/invocations";

role({
  async start({ peer, where, lambda_url, in_flight }) {
    const { work } = await import(`./peers/${peer}.mjs`);
    const pool = new Pool(lambda_url, { connections: in_flight, pipelining: 1 });
    const headers = { "x-amz-invocation-type": "Event", "content-type": "application/octet-stream" };
    const deliver = async (body) => {
      const answer = await pool.request({ method: "POST", path: PATH, headers, body });
      await answer.body.dump();
      if (answer.statusCode !== 202) throw new Error(`status ${answer.statusCode}`);
    };
    await work(where, deliver, in_flight);
  },
});
