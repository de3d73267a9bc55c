// Do axes stand still while the data moves a little, hold all of it, and have round ends?

import assert from "node:assert/strict";
import test from "node:test";

import { Extent, Extents, LINEAR, LOG, LogExtent, niceCeil } from "../../moeviz/live/static/scale.js";
import { near, randomNumbers } from "./oracles.js";

test("a round number is the smallest that is not below", () => {
  const expected = [[1, 1], [1.01, 1.5], [0.23, 0.25], [7, 8], [81, 100], [1e6, 1e6], [3e-7, 3e-7], [0.3, 0.3]];
  for (const [value, round] of expected) near(niceCeil(value), round, 1e-9);
  for (const none of [0, -3, NaN, Infinity]) assert.equal(niceCeil(none), 1);
});

test("a range holds its data, has round ends and is not much wider", () => {
  const random = randomNumbers(2);
  for (let i = 0; i < 500; i++) {
    const low = (random() - 0.5) * 10 ** Math.floor(6 * random() - 3);
    const high = low + random() * 10 ** Math.floor(6 * random() - 3) + 1e-6;
    const [bottom, top] = new Extent().fit(low, high);
    if (bottom === 0 && top === 1) continue; // it fits already
    assert.ok(bottom <= low && high <= top, `${[low, high]} in ${[bottom, top]}`);
    assert.ok(top - bottom <= 2 * (high - low), `${[low, high]} in ${[bottom, top]}`);
    const step = niceCeil((high - low) / 5);
    for (const end of [bottom, top]) near(Math.round(end / step) * step, end, 1e-9);
  }
});

test("a range stands still until data leave it, or need less than half of it", () => {
  const extent = new Extent();
  const range = extent.fit(0, 40);
  assert.equal(extent.fit(1, 39), range);
  assert.equal(extent.fit(0.5, 25), range);
  assert.ok(extent.fit(1, 12)[1] < range[1], "much too roomy");
  const narrow = extent.range;
  assert.ok(extent.fit(0, 41)[1] > narrow[1], "data have left it");
});

test("a range stays for data that are none, and one value alone has room", () => {
  const extent = new Extent();
  const range = extent.fit(3, 9);
  assert.equal(extent.fit(Infinity, -Infinity), range);
  assert.equal(extent.fit(NaN, 1), range);
  for (const value of [70, -70, 0]) {
    const [bottom, top] = new Extent().fit(value, value);
    assert.ok(bottom <= value && value <= top, `${value} in ${[bottom, top]}`);
    assert.ok(top - bottom > Math.abs(value) / 10, `${value} in ${[bottom, top]}`);
  }
});

test("a logarithmic range goes from one of 1, 2, 5 times a power of ten to another", () => {
  const expected = [
    [[0.3, 0.9], [0.2, 1]], [[0.01, 999], [0.01, 2000]], [[2, 5], [2, 10]], [[1e-3, 2e-3], [1e-3, 5e-3]],
    [[0.05, 40], [0.05, 50]], [[700, 700], [500, 1000]],
  ];
  for (const [[low, high], range] of expected) assert.deepEqual(new LogExtent().fit(low, high), range);
});

test("a logarithmic range stands still as the other one, and takes no zero", () => {
  const extent = new LogExtent();
  const range = extent.fit(0.1, 90);
  assert.equal(extent.fit(0.2, 80), range);
  for (const [low, high] of [[0, 5], [-1, 5], [NaN, 5], [1, Infinity], [Infinity, -Infinity]]) {
    assert.equal(extent.fit(low, high), range);
  }
  assert.deepEqual(extent.fit(1, 4), [1, 5], "much too roomy");
});

test("a place on an axis is a share of it, and back", () => {
  assert.deepEqual([LINEAR.share(15, 10, 20), LINEAR.at(0.5, 10, 20)], [0.5, 15]);
  near(LOG.share(10, 1, 1000), 1 / 3);
  near(LOG.at(1 / 3, 1, 1000), 10);
  near(LOG.at(LOG.share(7, 0.2, 50), 0.2, 50), 7);
  for (const none of [0, -1, NaN]) assert.ok(Number.isNaN(LOG.share(none, 1, 10)), "zero has no place");
});

test("a chart's range holds every curve over the visible entries, and no more", () => {
  const curves = [[9, 1, 4, 2, 9], [9, 3, 2, 5, 9]].map((values) => (i) => values[i]);
  const seen = { first: 1, last: 3, logValues: false };
  const [bottom, top] = new Extents().fit(seen, curves);
  assert.ok(bottom <= 1 && top >= 5 && top < 9);
  assert.equal(new Extents().fit(seen, curves, { zero: true })[0], 0);
  assert.ok(new Extents().fit(seen, [() => 0.2], { zero: true, least: 40 })[1] >= 40);
  assert.deepEqual(new Extents().fit({ ...seen, logValues: true }, [(i) => [9, 0, 3, NaN, 9][i]]), [2, 5]);
});
