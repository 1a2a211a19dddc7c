// Calls Lambda with the AWS SDK for JavaScript as each case says, and writes what the caller is shown.
//
// usage: invoke.mjs ENDPOINT_URL, cases on stdin: one {"name", "operation", "args"} a line, the arguments as the SDK has
// them, but "Payload" as text, or as a number of bytes to be made up. Writes one {"name", "shown"} a line.

import { createInterface } from "node:readline";
import * as lambda from "@aws-sdk/client-lambda";

const client = new lambda.LambdaClient({ endpoint: process.argv[2] });

const text = (bytes) => (bytes ? Buffer.from(bytes).toString() : bytes);

async function call(operation, args) {
  if (typeof args.Payload === "number") args.Payload = `"${"x".repeat(args.Payload - 2)}"`;
  if (operation === "InvokeAsync") {
    args.InvokeArgs = args.Payload;
    delete args.Payload;
  }
  let answer;
  let meta;
  try {
    const { $metadata, ...rest } = await client.send(new lambda[`${operation}Command`](args));
    meta = $metadata;
    answer = { ...rest, Payload: text(rest.Payload) };
    if (rest.EventStream) {
      delete answer.EventStream;
      answer.streamed = "";
      for await (const event of rest.EventStream) {
        if (event.PayloadChunk) answer.streamed += text(event.PayloadChunk.Payload);
        if (event.InvokeComplete) answer.complete = [event.InvokeComplete];
      }
    }
    if (rest.LogResult) answer.LogResult = Buffer.from(rest.LogResult, "base64").toString();
  } catch (why) {
    if (!why.$metadata?.httpStatusCode) throw why;
    meta = why.$metadata;
    answer = { name: why.name, message: why.message, Type: why.Type, Reason: why.Reason };
  }
  const shown = { ...answer, status: meta.httpStatusCode, hasRequestId: Boolean(meta.requestId) };
  // Each call has an id of its own; everything else must be the same.
  return JSON.parse(JSON.stringify(shown).replaceAll(/[0-9a-f]{8}-[0-9a-f-]{27}/g, "ID"));
}

for await (const line of createInterface({ input: process.stdin })) {
  const { name, operation, args } = JSON.parse(line);
  console.log(JSON.stringify({ name, shown: await call(operation, args) }));
}
client.destroy();
