// sendoff as it is by default, called with undici.

import { randomUUID } from "node:crypto";
import { Pool, request } from "undici";
import { maker } from "../event.mjs";
import { free_port } from "../scene.mjs";

export const name = "sendoff";
export const needs = {};
export const takes = "bytes";
// It delivers itself.
export const work = undefined;

const PATH = "/2015-03-31/functions/f0/invocations";

// What an SDK sends beside the payload: an invocation id of its own for each, which sendoff remembers, and a signature.
export const headers = () => ({
  "x-amz-invocation-type": "Event",
  "content-type": "application/octet-stream",
  "amz-sdk-invocation-id": randomUUID(),
  "amz-sdk-request": "attempt=1; max=3",
  "x-amz-date": "20260101T000000Z",
  authorization:
    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260101/eu-central-1/lambda/aws4_request, " +
    "SignedHeaders=host;x-amz-date;x-amz-invocation-type, " +
    "Signature=0000000000000000000000000000000000000000000000000000000000000000",
});

export const start = (scene, programs) => serve(scene, programs, []);

export async function serve(scene, { lambda_url, sendoff }, more) {
  const paused = !lambda_url;
  lambda_url ??= `http://127.0.0.1:${await free_port()}`;
  const settings = [
    "listen.ingest=127.0.0.1:0",
    "listen.admin=127.0.0.1:0",
    "lambda.region=eu-central-1",
    `lambda.endpoint_url=${lambda_url}`,
    "log.format=json",
    ...more,
  ];
  const args = ["serve", "--state-dir", scene.path("state"), ...settings.flatMap((setting) => ["--set", setting])];
  const env = { AWS_ACCESS_KEY_ID: "bench", AWS_SECRET_ACCESS_KEY: "bench", AWS_EC2_METADATA_DISABLED: "true" };
  const daemon = scene.system(sendoff, args, { env: { ...env, PATH: process.env.PATH } });
  const where = await scene.until(async () => ready(daemon.said()), daemon);
  if (paused) await pause(where);
  return where;
}

// As a peer whose worker does not run. Only a function that has an event can be paused.
async function pause({ address, admin }) {
  const client = await open_client({ address }, 1);
  await client.send(maker(1_024, takes)(0));
  const answer = await request(`http://${admin}/v1/functions/f0/pause`, { method: "POST" });
  const said = await answer.body.text();
  if (answer.statusCode !== 200) throw new Error(`not paused: ${said}`);
}

// The addresses in the line `ready` of the log.
function ready(log) {
  for (const line of log.split("\n").filter((line) => line.includes('"ready"'))) {
    const said = JSON.parse(line);
    const fields = said.fields ?? said;
    if (fields.message === "ready") return { address: fields.ingest, admin: fields.admin };
  }
  throw new Error("not ready");
}

export async function open_client({ address }, in_flight) {
  const pool = new Pool(`http://${address}`, { connections: in_flight, pipelining: 1 });
  const send = async (event) => {
    const answer = await pool.request({ method: "POST", path: PATH, headers: headers(), body: event });
    await answer.body.dump();
    if (answer.statusCode !== 202) throw new Error(`not accepted: ${answer.statusCode}`);
  };
  return { send };
}
