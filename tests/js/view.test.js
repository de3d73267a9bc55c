// Which steps and which moment do the charts show?

import assert from "node:assert/strict";
import test from "node:test";

import { TwinsView } from "../../moeviz/live/static/twins_view.js";
import { nearest, View } from "../../moeviz/live/static/view.js";
import { count, give, storeWith } from "./stores.js";

const KEPT = [0, 8, 20, 21, 22];
const looking = (at, more = {}) => Object.assign(new View(() => {}), { at, ...more });

test("the nearest kept step is found, the earlier one halfway", () => {
  const store = storeWith(KEPT);
  const expected = { 0: 0, 3: 0, 4: 0, 5: 8, 13: 8, 14: 8, 15: 20, 22: 22, 99: 22 };
  for (const [step, kept] of Object.entries(expected)) {
    assert.equal(store.step[nearest(store, Number(step))], kept, step);
  }
  assert.equal(storeWith([5, 6]).step[nearest(storeWith([5, 6]), 1)], 5, "before the first");
  assert.ok(nearest(storeWith([]), 4) < 0, "there is none");
});

test("live is the newest step, a moment of the past stays where it is", () => {
  const store = storeWith(KEPT);
  const [live, past] = [looking(null), looking(8)];
  assert.deepEqual([live.index(store), past.index(store)], [4, 1]);
  give(store, [23, 24]);
  assert.deepEqual([live.index(store), past.index(store)], [6, 1]);
  assert.equal(looking(11).index(store), 1, "thinned away: the nearest that is kept");
  assert.equal(live.index(storeWith([])), -1);
});

test("while drawing is paused nothing newer is shown, wherever one looks", () => {
  const store = storeWith(count(0, 30));
  const paused = looking(null, { until: 20 });
  assert.deepEqual([paused.end(store), paused.index(store)], [20, 20]);
  paused.at = 25;
  assert.equal(paused.index(store), 20);
  paused.at = 7;
  assert.equal(paused.index(store), 7);
  assert.equal(looking(null, { until: 20 }).end(storeWith([25, 26])), 0, "another run has begun later");
  paused.goLive();
  assert.deepEqual([paused.at, paused.until, paused.index(store)], [null, null, 29]);
});

test("all steps are shown from the first to a round number behind the last", () => {
  const range = (last) => looking(null).range(storeWith([0, last]));
  const expected = { 0: 20, 3: 20, 20: 20, 21: 22, 99: 100, 101: 110, 1001: 1100, 8999: 9000, 100_001: 110_000 };
  for (const [last, high] of Object.entries(expected)) assert.deepEqual(range(Number(last)), [0, high], last);
  assert.deepEqual(looking(null).range(storeWith([])), [0, 20]);
});

test("a window is as wide as it says and moves in jumps of a twentieth", () => {
  const view = looking(null, { window: "200" });
  const range = (last) => view.range(storeWith([0, last]));
  assert.deepEqual(range(1499), [1300, 1500]);
  assert.deepEqual(range(1491), [1300, 1500], "it stands still a while");
  assert.deepEqual(range(1501), [1310, 1510]);
  assert.deepEqual(range(50), [0, 50]);
  assert.deepEqual(looking(null, { window: "200", until: 700 }).range(storeWith(count(0, 1500))), [500, 700]);
});

test("a window and a zoom turn to the moment like a page, and keep their width", () => {
  const store = storeWith(count(0, 1500));
  for (const at of [321, 0, 199, 200, 1400]) {
    const [low, high] = looking(at, { window: "200" }).range(store);
    assert.ok(low <= at && at <= high && high - low === 200, `${at} in ${[low, high]}`);
  }
  assert.deepEqual(looking(321, { window: "200" }).range(store), [200, 400]);
  assert.deepEqual(looking(null, { zoom: [30, 60] }).range(store), [30, 60]);
  for (const at of [30, 50, 60]) assert.deepEqual(looking(at, { zoom: [30, 60] }).range(store), [30, 60]);
  assert.deepEqual(looking(100, { zoom: [30, 60] }).range(store), [90, 120]);
});

test("how charts are drawn stays for the next run, where one looks does not", () => {
  const changes = [];
  const before = new View(() => changes.push(before.smoothing));
  before.set({ smoothing: 0.6, logValues: true, logSteps: true, at: 7, window: "200", expert: 3 });
  assert.deepEqual(changes, [0.6], "told once");
  const { smoothing, logValues, logSteps, at, window: shown, expert } = new View(() => {});
  assert.deepEqual([smoothing, logValues, logSteps, at, shown, expert], [0.6, true, true, null, "all", -1]);
  before.set({ smoothing: null, logValues: false, logSteps: false });
});

test("an expert is selected, and selected again no longer", () => {
  const view = new View(() => {});
  view.select(3);
  assert.equal(view.expert, 3);
  view.select(5);
  assert.equal(view.expert, 5);
  view.select(5);
  assert.equal(view.expert, -1);
});

test("twins share one range of steps, and one that had not begun has no moment", () => {
  const [face, late] = [storeWith(count(0, 200)), storeWith(count(20, 60))];
  const view = new TwinsView(() => {}, () => face);
  assert.deepEqual(view.range(late), [0, 200]);
  assert.equal(view.index(late), 39);
  view.at = 15;
  assert.equal(view.index(late), -1);
  view.at = 20;
  assert.equal(view.index(late), 0);
  assert.equal(view.index(storeWith([])), -1);
  view.set({ zoom: [10, 20], hover: { step: 12 } });
  view.begin();
  assert.deepEqual([view.zoom, view.hover, view.at, view.until], [null, null, null, null]);
});
