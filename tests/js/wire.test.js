// Does the browser read a message as Python does?

import assert from "node:assert/strict";
import test from "node:test";

import { decode } from "../../moeviz/live/static/wire.js";
import { bytes, messages, numbers, plain } from "./from_python.js";

for (const { name, message, header, columns } of messages) {
  test(`read as in Python: ${name}`, () => {
    const seen = decode(bytes(message));
    assert.deepEqual(seen.header, header);
    assert.deepEqual(Object.keys(seen.columns).sort(), Object.keys(columns).sort());
    for (const [column, values] of Object.entries(columns)) {
      assert.deepEqual(plain(seen.columns[column]), numbers(values), column);
    }
  });
}

test("there are messages of every kind", () => {
  assert.ok(messages.length >= 9);
  assert.ok(messages.some(({ header }) => header.push) && messages.some(({ header }) => header.scale === undefined));
});

test("a message of another format asks for a reload", () => {
  const other = new Uint8Array(bytes(messages[0].message)).fill(1, 0, 1);
  assert.throws(() => decode(other.buffer), /not of the same age. Reload the page/);
});
