// Are the numbers of one entry the right ones, and written as people read them?

import assert from "node:assert/strict";
import test from "node:test";

import { element } from "./page.js";

import {
  busiest, deadExperts, expertTicks, grouping, heldOutAt, relativeLoad,
} from "../../moeviz/live/static/facts.js";
import { pictureName, shortHash } from "../../moeviz/live/static/files.js";
import { USUAL } from "../../moeviz/live/static/smoothing.js";
import { Strip } from "../../moeviz/live/static/strip.js";
import { View } from "../../moeviz/live/static/view.js";
import { fixed, number, percent, shorten } from "../../moeviz/live/static/words.js";
import { meanByHand } from "./oracles.js";
import { count, storeWith } from "./stores.js";

test("numbers are short, and none is a dash", () => {
  const values = [0, 3.14159, 1234.5, -0.5, 0.00012, 1e-3];
  assert.deepEqual(values.map((value) => number(value)), ["0", "3.14", "1230", "−0.5", "1.2e-4", "0.001"]);
  assert.equal(number(87.6, 2), "88");
  assert.deepEqual([fixed(2.5, 2), fixed(-1, 0), percent(0), percent(0.004)], ["2.50", "−1", "0 %", "0.4 %"]);
  assert.deepEqual([percent(0.09949), percent(0.0995), percent(1)], ["9.9 %", "10 %", "100 %"]);
  for (const none of [NaN, Infinity]) assert.deepEqual([number(none), fixed(none, 2), percent(none)], ["–", "–", "–"]);
  assert.deepEqual([shorten("abcdef", 6), shorten("abc defg", 5)], ["abcdef", "abc…"]);
});

test("dead is who had less than a hundredth of the mean over the last twenty steps", () => {
  const steps = count(0, 60);
  // Over twenty steps of 100 pairs for four experts the mean is 500: 6 in all is not dead, 5 is.
  const load = steps.map((step) => [step === 30 ? 6 : 0, step >= 30 && step < 36 ? 1 : 0, 50, 50]);
  const store = storeWith(steps, { load });
  assert.deepEqual(deadExperts(store, 49, 0), [false, false, false, false], "of steps 30 to 49");
  assert.deepEqual(deadExperts(store, 50, 0), [true, true, false, false], "of steps 31 to 50");
  assert.deepEqual(deadExperts(store, 29, 0), [true, true, false, false]);
  const gap = storeWith([0, 30], { load: [[9, 9, 9, 9], [0, 9, 9, 9]] });
  assert.ok(deadExperts(gap, 1, 0)[0], "steps count, not entries");
});

test("the busiest expert, a load against balance, and of which layer", () => {
  const store = storeWith([0], { load: [[1, 7, 4, 0, 6, 2, 2, 2]] }, { layers: 2 });
  assert.deepEqual([busiest(store, 0, 0), busiest(store, 0, 1)], [1, 0]);
  assert.deepEqual([relativeLoad(store, 0, 0, 1), relativeLoad(store, 0, 1, 0)], [7 / 3, 2]);
  assert.equal(relativeLoad(storeWith([0]), 0, 0, 0), 0, "without tokens");
});

test("the held-out loss is the newest that was known then", () => {
  const store = storeWith(count(0, 6), { eval_loss: [NaN, 3, NaN, NaN, 2, NaN] });
  assert.deepEqual(heldOutAt(store, 3), { loss: 3, step: 1 });
  assert.deepEqual(heldOutAt(store, 5), { loss: 2, step: 4 });
  assert.deepEqual(heldOutAt(store, 0), { loss: NaN, step: NaN });
});

test("experts are grouped where they can be", () => {
  const store = storeWith([0], {}, { experts: 16, knobs: { num_groups: 4 } });
  assert.deepEqual(grouping(store), { groups: 4, size: 4 });
  for (const knobs of [null, {}, { num_groups: 1 }, { num_groups: 3 }]) {
    assert.deepEqual(grouping(store, knobs), { groups: 1, size: 16 });
  }
  assert.deepEqual([4, 16, 17, 64, 256, 4096].map(expertTicks), [1, 2, 4, 8, 32, 64]);
});

const TILES = ["step", "loss", "max_vio", "dead", "dropped", "groups", "speed"];

function tiles(store, view = {}, state = { playing: true, word: "training" }) {
  const texts = Object.fromEntries(TILES.map((name) => [name, { title: name }]));
  const strip = new Strip(texts, { button: () => element("button") });
  strip.draw(store, Object.assign(new View(() => {}), view), state);
  return Object.fromEntries(TILES.map((name) => {
    const { value, more } = strip.tiles[name];
    return [name, [value.textContent, more.textContent.trim()]];
  }));
}

const LOSSES = [4, 2, 6];
const mean = (entries) => meanByHand(LOSSES.slice(0, entries), new Array(entries).fill(1), USUAL).toFixed(3);
const GROUPED = { num_groups: 4, groups_kept: 2, token_dropping: "expert" };
const run = storeWith([0, 1, 2], {
  version: [0, 0, 1],
  task_loss: LOSSES,
  eval_loss: [3.5, NaN, 2.25],
  max_vio: [[1.5, 0.5], [2, 1], [2.344, 0.25]],
  fair_max_vio: [0.3, 0.4, 0.456],
  dead_experts: [[0, 1], [2, 3], [4, 5]],
  dropped_fraction: [[0, 0], [0, 0], [0.031, 0.31]],
  fan_out: [[1, 1], [1, 1], [1.75, 2]],
  steps_per_second: [10, 20, 87.6],
}, { layers: 2, knobs: GROUPED });
run.knobsOf.set(0, { num_groups: 1, token_dropping: "none" });

test("live the tiles show the newest step and how the run is", () => {
  assert.deepEqual(tiles(run), {
    step: ["2", "training"],
    loss: ["2.250", `training ${mean(3)}`],
    max_vio: ["2.34", "fair router 0.46"],
    dead: ["4 / 4", "layer 0"],
    dropped: ["3.1 %", "per expert"],
    groups: ["1.75", "of 4, at most 2"],
    speed: ["88", ""],
  });
  const paused = tiles(run, { layer: 1 }, { playing: false, word: "paused" });
  assert.deepEqual(paused.step, ["2", "paused"]);
  assert.deepEqual(paused.speed, ["0", "paused"]);
  assert.deepEqual([paused.max_vio[0], paused.dead, paused.dropped[0]], ["0.25", ["5 / 4", "layer 1"], "31 %"]);
});

test("a past moment shows the numbers and the settings of then", () => {
  const past = tiles(run, { at: 1, layer: 1 }, { playing: false, word: "paused" });
  assert.deepEqual(past, {
    step: ["1", "of 2"],
    loss: ["3.500", `training ${mean(2)}`],
    max_vio: ["1.00", "fair router 0.40"],
    dead: ["3 / 4", "layer 1"],
    dropped: ["0 %", "dropping is off"],
    groups: ["1", "no groups"],
    speed: ["20", ""],
  });
  assert.deepEqual(tiles(run, { until: 1 }).step, ["1", "of 2"], "so does a pause of the drawing");
});

test("of settings that nobody told nothing is said, and before there are steps there are no numbers", () => {
  const unknown = storeWith([0, 1], { version: [0, 1] }, { knobs: GROUPED });
  const past = tiles(unknown, { at: 0 });
  assert.deepEqual([past.dropped[1], past.groups], ["", ["0", ""]]);
  assert.deepEqual(past.loss[0], "–");
  for (const [value, more] of Object.values(tiles(storeWith([])))) assert.deepEqual([value, more], ["–", ""]);
});

test("a picture is named after its chart, its step and the settings", () => {
  const name = pictureName("loss", { recipe: { seed: 0 }, knobs: { u: 0.1 } }, 300);
  assert.match(name, /^moeviz-loss-step-300-[0-9a-f]{6}$/);
  assert.equal(pictureName("loss", { recipe: { seed: 0 }, knobs: { u: 0.1 } }, 300), name);
  assert.notEqual(pictureName("loss", { recipe: { seed: 0 }, knobs: { u: 0.2 } }, 300), name);
  assert.notEqual(pictureName("loss", { recipe: { seed: 1 }, knobs: { u: 0.1 } }, 300), name);
  assert.equal(pictureName("load", { recipe: null, knobs: null }, 0), "moeviz-load-step-0");
  assert.deepEqual(["", "a", "foobar"].map(shortHash), ["1c9dc5", "0c292c", "9cf968"], "FNV-1a's published values");
});
