// What Python's side wrote down for these tests, so that both languages are held against each other.

import { readFileSync } from "node:fs";

if (!process.env.MOEVIZ_FROM_PYTHON) throw new Error("Run these tests with pytest: tests/test_javascript.py.");

export const { messages, answers } = JSON.parse(readFileSync(process.env.MOEVIZ_FROM_PYTHON, "utf8"));

export const bytes = (text) => new Uint8Array(Buffer.from(text, "base64")).buffer;

// The numbers of a column. Zero is zero, whatever its sign.
export const numbers = (text) => plain(new Float64Array(bytes(text)));
export const plain = (values) => Array.from(values, (value) => value + 0);
