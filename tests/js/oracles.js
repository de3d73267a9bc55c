// The rules spoken aloud, slowly: what tests hold the charts' arithmetic against.

import assert from "node:assert/strict";

// The mean of all steps, the newest weighing 1 and each one before it `weight` as much; every value stands as often as
// its gap says.
export function meanByHand(values, gaps, weight) {
  const steps = values.flatMap((value, i) => new Array(gaps[i]).fill(value));
  const weights = steps.map((_, k) => weight ** (steps.length - 1 - k));
  return sum(steps.map((value, k) => weights[k] * value)) / sum(weights);
}

// The steps of entries that are so far apart; the first one is as many after "none yet".
export function stepsOf(gaps) {
  return gaps.map((_, k) => sum(gaps.slice(0, k + 1)) - 1);
}

export const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

export function near(seen, expected, share = 1e-6, what = "") {
  const away = Math.abs(seen - expected);
  assert.ok(away <= share * Math.max(Math.abs(expected), 1e-12), `${what} ${seen} is not near ${expected}`);
}

// The same numbers in every run, from 0 to 1 (mulberry32).
export function randomNumbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
