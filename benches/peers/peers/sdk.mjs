// No queue at all: callers wait for the stand-in itself, with the AWS SDK as its documentation has it.

import { InvokeCommand, LambdaClient } from "@aws-sdk/client-lambda";

export const name = "AWS SDK for JavaScript, nothing between";
export const needs = {};
export const takes = "bytes";
export const accepts = false;
export const stores = false;
// What it costs is what the callers' process costs.
export const is_client = true;

export const start = async (_, { lambda_url }) => ({ lambda_url });

export async function open_client({ lambda_url }, in_flight) {
  const credentials = { accessKeyId: "bench", secretAccessKey: "bench" };
  const requestHandler = { httpAgent: { keepAlive: true, maxSockets: in_flight } };
  const client = new LambdaClient({ endpoint: lambda_url, region: "eu-central-1", credentials, requestHandler });
  return { send: (Payload) => client.send(new InvokeCommand({ FunctionName: "f0", InvocationType: "Event", Payload })) };
}
