// Does the browser remember a run as it was, in bounded memory and without losing its extremes?

import assert from "node:assert/strict";
import test from "node:test";

import { Store } from "../../moeviz/live/static/store.js";
import { USUAL } from "../../moeviz/live/static/smoothing.js";
import { meanByHand, near, stepsOf } from "./oracles.js";
import { column, count, give, giveRun, storeWith } from "./stores.js";

test("columns hold what came, entry by entry", () => {
  const loads = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]];
  const store = storeWith([3, 5], { load: loads, task_loss: [0.5, 0.25] }, { layers: 2, experts: 3 });
  assert.equal(store.count, 2);
  assert.equal(store.lastStep, 5);
  assert.deepEqual(column(store, "step"), [3, 5]);
  assert.deepEqual(column(store, "task_loss"), [0.5, 0.25]);
  assert.deepEqual(column(store, "load"), loads.flat());
  const start = store.row(1, 1);
  assert.deepEqual([...store.load.subarray(start, start + 3)], [10, 11, 12]);
});

test("what follows from loads and biases: mean load, mean bias and spread of each layer", () => {
  const load = [[0, 2, 4, 6, 1, 1, 1, 1]];
  const bias = [[-0.5, 0.25, 0.75, 0.5, 0, 0, 0, 0]];
  const store = storeWith([0], { load, bias }, { layers: 2 });
  assert.deepEqual(column(store, "mean_load"), [3, 1]);
  assert.deepEqual(column(store, "mean_bias"), [0.25, 0]);
  assert.deepEqual(column(store, "bias_spread"), [1.25, 0]);
});

test("the usual mean of the loss is the debiased one, also where steps are missing and where a loss is none", () => {
  const [losses, gaps] = [[4, 1, 3, 2.5, 9, 2], [1, 1, 3, 1, 10, 2]];
  const store = storeWith(stepsOf(gaps), { task_loss: losses });
  losses.forEach((_, i) => {
    near(store.smooth_loss[i], meanByHand(losses.slice(0, i + 1), gaps.slice(0, i + 1), USUAL));
  });
  const holes = storeWith([0, 1, 2, 3], { task_loss: [NaN, 2, NaN, Infinity] });
  assert.deepEqual(column(holes, "smooth_loss"), [NaN, 2, 2, 2]);
});

test("an answer that crossed another brings no step twice", () => {
  const store = storeWith([0, 1, 2], { task_loss: [1, 2, 3] });
  give(store, [1, 2, 3], { task_loss: [7, 7, 4] });
  assert.deepEqual(column(store, "step"), [0, 1, 2, 3]);
  assert.deepEqual(column(store, "task_loss"), [1, 2, 3, 4]);
});

test("the entry of a step is the last one that is not after it", () => {
  const store = storeWith([2, 3, 7, 20]);
  const expected = { 0: -1, 1: -1, 2: 0, 3: 1, 6: 1, 7: 2, 19: 2, 20: 3, 99: 3 };
  for (const [step, index] of Object.entries(expected)) assert.equal(store.indexOf(Number(step)) + 0, index, step);
  assert.equal(new Store(1, 4).indexOf(5), -1);
  assert.equal(new Store(1, 4).lastStep, -1);
});

test("steps are missing between entries, or they are not", () => {
  const store = storeWith([2, 3, 4, 9, 10]);
  const between = (first, last) => store.hasGaps(first, last);
  assert.deepEqual([between(0, 2), between(0, 3), between(3, 4), between(3, 3)], [false, true, false, false]);
});

test("a change of settings is a mark that says what changed", () => {
  const store = storeWith([0, 1, 2, 3], { version: [0, 0, 1, 4] });
  assert.deepEqual(store.marks, [{ step: 2, from: 0, to: 1 }, { step: 3, from: 1, to: 4 }]);
  for (const [version, label] of [[1, "u 0.1"], [2, "top_k 1"], [4, "top_k 2"]]) store.labels.set(version, label);
  assert.deepEqual(store.marks.map((mark) => store.markText(mark)), ["u 0.1", "top_k 1; top_k 2"]);
  store.labels.clear();
  assert.equal(store.markText(store.marks[0]), "settings changed");
});

test("knobs of an entry are those it was made with, as far as this browser heard of them", () => {
  const store = storeWith([0, 1, 2], { version: [0, 1, 2] }, { knobs: { u: 0.2 } });
  store.knobsOf.set(1, { u: 0.1 });
  assert.deepEqual([0, 1, 2].map((index) => store.knobsAt(index)), [null, { u: 0.1 }, { u: 0.2 }]);
});

test("the newest held-out loss is known with its step", () => {
  const store = storeWith([0, 1, 2], { eval_loss: [3, 0.5, NaN] });
  assert.deepEqual([store.lastHeldOut, store.lastHeldOutStep], [0.5, 1]);
});

function memory(store) {
  return [...store.columns.values()].reduce((bytes, { data }) => bytes + data.byteLength, 0);
}

test("a million steps take the memory of ten thousand, and keep spikes, dips and changes", () => {
  const store = new Store(1, 16);
  for (let from = 0; from < 10_000; from += 1000) giveRun(store, count(from, from + 1000));
  const bytes = looked(store, 10_000);
  for (let from = 10_000; from < 990_000; from += 5000) giveRun(store, count(from, from + 5000, 5)); // a long catch-up
  for (let from = 990_000; from < 1_000_000; from += 1000) giveRun(store, count(from, from + 1000));
  assert.equal(looked(store, 1_000_000), bytes);
});

function looked(store, end) {
  const steps = column(store, "step");
  assert.deepEqual(steps, [...new Set(steps)].sort((a, b) => a - b));
  assert.deepEqual([steps[0], steps.at(-1)], [0, end - 1]);
  assert.ok(store.count <= 4000);
  assert.equal(Math.max(...column(store, "max_vio")), 50, "a spike stays");
  assert.equal(steps[column(store, "max_vio").indexOf(50)], 1234, "where it was");
  assert.equal(Math.min(...column(store, "task_loss")), 0.25, "a dip stays");
  assert.equal(steps[column(store, "version").indexOf(1)], 1777, "the first step under changed settings stays");
  assert.ok(column(store, "eval_loss").filter(Number.isFinite).length > 100);
  assert.deepEqual(steps.slice(-1000), count(end - 1000, end), "the last 1000 are whole");
  const gaps = steps.slice(1, -1000).map((step, i) => step - steps[i]);
  assert.ok(Math.max(...gaps) <= end / 100, "the picture is as fine at its beginning as later on");
  return memory(store);
}

test("what is left after thinning is whole: every column of an entry is still that entry's", () => {
  const store = new Store(2, 3);
  const steps = count(0, 9000);
  const load = steps.map((step) => [0, 1, 2, 3, 4, 5].map((k) => (step * 7 + k) % 60_000));
  const max_vio = steps.map((step) => [step % 9, step % 7]);
  give(store, steps, { load, max_vio, task_loss: steps.map((step) => step / 2) });
  assert.ok(store.hasGaps(0, store.count - 1));
  for (let i = 0; i < store.count; i++) {
    const step = store.step[i];
    assert.equal(store.task_loss[i], step / 2);
    assert.deepEqual([store.max_vio[2 * i], store.max_vio[2 * i + 1]], [step % 9, step % 7]);
    assert.deepEqual([...store.load.subarray(store.row(i, 0), store.row(i, 0) + 6)], load[step]);
  }
});

test("a spike of any layer stays, and losses that are none are no extremes", () => {
  const store = new Store(2, 2);
  const steps = count(0, 9000);
  give(store, steps, {
    max_vio: steps.map((step) => [step === 1236 ? 40 : 1, 2]),
    task_loss: steps.map((step) => (step % 8 === 0 ? NaN : step === 1003 ? 90 : step === 1005 ? 0.1 : 1)),
  });
  const kept = column(store, "step");
  for (const step of [1236, 1003, 1005]) assert.ok(kept.includes(step), `step ${step}`);
});

test("where nothing is extreme, the first step stays, and held-out losses", () => {
  const store = new Store(1, 2);
  const steps = count(3, 9003);
  const changing = steps.map((step) => [2, 1, 3][step % 3]); // 3, 900, 1800 are neither highest nor lowest
  const eval_loss = steps.map((step) => (step % 900 ? NaN : 0.5));
  give(store, steps, { max_vio: changing, task_loss: changing, eval_loss });
  const kept = column(store, "step");
  assert.equal(kept[0], 3);
  for (const step of count(900, 9000, 900)) assert.ok(kept.includes(step), `step ${step}`);
  assert.ok(!kept.includes(903), "other ones like them are thinned away");
});

test("experts so many that a few thousand steps of them were too much are kept for fewer steps", () => {
  const store = new Store(8, 256);
  assert.ok(store.capacity < 4000);
  assert.ok(store.capacity * 8 * 256 * 8 <= 48e6);
  assert.equal(new Store(1, 16).capacity, 4000);
});
