// An event of so many bytes: a JSON object whose first field is its number, then short fields, then text.

const DIGITS = 8;
const HEAD = '{"n":"';
const ORDER = { id: 4711, currency: "EUR", lines: [{ sku: "A-1", n: 2 }] };
const TEXT = "the quick brown fox jumps over the lazy dog ";

// Makes events as clients take them: "bytes" or "object".
export function maker(bytes, takes) {
  const object = (n, note) => ({ n: String(n).padStart(DIGITS, "0"), note, order: ORDER });
  const note = TEXT.repeat(bytes / TEXT.length + 1).slice(0, bytes - JSON.stringify(object(0, "")).length);
  if (takes === "object") return (n) => object(n, note);
  const template = Buffer.from(JSON.stringify(object(0, note)));
  return (n) => {
    const event = Buffer.from(template);
    event.write(String(n).padStart(DIGITS, "0"), HEAD.length, "latin1");
    return event;
  };
}

// The number of the event that starts at `at`.
export function number(buffer, at) {
  let n = 0;
  for (let digit = 0; digit < DIGITS; digit += 1) {
    const value = buffer[at + HEAD.length + digit] - 48;
    if (!(value >= 0 && value <= 9)) throw new Error(`not an event: ${buffer.toString("latin1", at, at + 60)}`);
    n = n * 10 + value;
  }
  return n;
}
