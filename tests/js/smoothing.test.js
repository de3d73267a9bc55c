// Is the smoothed curve the debiased mean, also where steps are missing?

import assert from "node:assert/strict";
import test from "node:test";

import { shareOf, smoothed, USUAL, weightOf, weightText } from "../../moeviz/live/static/smoothing.js";
import { meanByHand, near, stepsOf } from "./oracles.js";

const VALUES = [4.0, 1.0, 3.0, 2.5, 9.0, 2.0];
const GAPS = [1, 1, 3, 1, 10, 2];

for (const weight of [0, 0.6, 0.99]) {
  test(`a weight of ${weight} gives the debiased mean, where a value stands for the steps missing before it`, () => {
    const seen = smoothed({ step: stepsOf(GAPS) }, VALUES.length - 1, weight, (i) => VALUES[i]);
    assert.equal(seen.length, VALUES.length);
    VALUES.forEach((_, i) => near(seen[i], meanByHand(VALUES.slice(0, i + 1), GAPS.slice(0, i + 1), weight), 1e-6));
  });
}

test("the mean of equal values is that value, from the first step on", () => {
  const seen = smoothed({ step: stepsOf(GAPS) }, 5, USUAL, () => 7);
  assert.deepEqual([...seen], [7, 7, 7, 7, 7, 7]);
});

test("a value that is none leaves the mean as it was, and before the first value there is none", () => {
  const values = [NaN, 2, NaN, 4];
  const seen = smoothed({ step: [0, 1, 2, 3] }, 3, 0, (i) => values[i]);
  assert.deepEqual([...seen], [NaN, 2, 2, 4]);
});

test("the mean goes up to the entry that is drawn last, and no further", () => {
  assert.equal(smoothed({ step: [0, 1, 2, 3] }, 1, 0.5, (i) => i).length, 2);
});

test("the first value is its mean alone", () => {
  assert.equal(shareOf([17, 18], 0, 0.99), 1);
});

test("a chart has its own weight until somebody chooses one, also none", () => {
  assert.deepEqual([weightOf({ smoothing: null }), weightOf({ smoothing: null }, USUAL)], [0, USUAL]);
  assert.deepEqual([weightOf({ smoothing: 0 }, USUAL), weightOf({ smoothing: 0.6 }, USUAL)], [0, 0.6]);
  assert.equal(weightText(USUAL), "smoothed 0.94");
});
