// sendoff once more, over bare sockets too, without the invocation id: then it remembers as little of an event as its peers do.

import { headers } from "./sendoff.mjs";
import { open_client as open_bare } from "./sendoff-bare.mjs";

export const name = "sendoff, the same without a key to remember";
export { needs, start, takes, work } from "./sendoff.mjs";

function without_key() {
  const { "amz-sdk-invocation-id": _, ...others } = headers();
  return others;
}

export const open_client = (where, in_flight) => open_bare(where, in_flight, without_key);
