// Do the Playground's charts show, read out and say the numbers of the run?

import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { leave } from "./page.js";

import { BOX, card, chartOf, key, lines, THEME } from "./charts.js";

import { biasChart } from "../../moeviz/live/static/bias_chart.js";
import { droppedChart } from "../../moeviz/live/static/dropped_chart.js";
import { historyChart } from "../../moeviz/live/static/history_chart.js";
import { LoadChart } from "../../moeviz/live/static/load_chart.js";
import { lossChart } from "../../moeviz/live/static/loss_chart.js";
import { maxVioChart } from "../../moeviz/live/static/max_vio_chart.js";
import { USUAL } from "../../moeviz/live/static/smoothing.js";
import { cividis } from "../../moeviz/live/static/theme.js";
import { meanByHand, near } from "./oracles.js";
import { count, give, storeWith } from "./stores.js";

afterEach(leave);

const STEPS = count(0, 40);
const WAVES = STEPS.map((step) => 3 + 2 * Math.sin(step) + (step % 3));
const HALF = { token_dropping: "expert" };
const OFF = { token_dropping: "none", bias_rule: "none" };

const readout = ({ chart }, index) => chart.kind.readout(chart.frame, index).map((line) => line.replace("−", "-"));
const meanAt = (index, weight) => meanByHand(WAVES.slice(0, index + 1), STEPS.slice(0, index + 1).map(() => 1), weight);

function said(lines, beginning) {
  const found = lines.find((line) => line.startsWith(beginning));
  return Number.parseFloat(found.slice(beginning.length));
}

test("one slider smooths loss, MaxVio and dropped, and their keys say so", () => {
  const store = storeWith(STEPS, { task_loss: WAVES, max_vio: WAVES, dropped_fraction: WAVES.map((one) => one / 10) });
  const raw = [lossChart(), maxVioChart(), droppedChart()].map((kind) => chartOf(kind, store));
  assert.deepEqual(raw.map(({ card: place }) => key(place)), [
    { thin: "batch", thick: "smoothed 0.94", diamond: "held-out" },
    { thick: "this run", band: "fair router (95 %)", dashed: "its mean" },
    { hatch: "dropped, % of (token, expert) pairs" },
  ], "raw unless somebody asks, but for the loss");
  near(said(readout(raw[0], 30), "smoothed 0.94: "), meanAt(30, USUAL), 6e-3);
  const smooth = [lossChart(), maxVioChart(), droppedChart()].map((kind) => chartOf(kind, store, { smoothing: 0.6 }));
  assert.deepEqual(smooth.map(({ card: place }) => key(place)), [
    { thin: "batch", thick: "smoothed 0.60", diamond: "held-out" },
    { thick: "smoothed 0.60", thin: "each step", band: "fair router", dashed: "its mean" },
    { hatch: "dropped pairs", "thick-dropped": "smoothed 0.60" },
  ]);
  for (const chart of smooth.slice(0, 2)) near(said(readout(chart, 30), "smoothed 0.60: "), meanAt(30, 0.6), 6e-3);
  const [none, gone] = [lossChart(), droppedChart()].map((kind) => chartOf(kind, store, { smoothing: 0 }));
  assert.deepEqual(key(none.card), { thick: "batch", diamond: "held-out" });
  assert.deepEqual(readout(none, 30).filter((line) => line.includes("smoothed")), []);
  assert.deepEqual(Object.keys(key(gone.card)), ["hatch"]);
});

test("a smoothed line is painted thick over a raw one that is thin", () => {
  const store = storeWith(STEPS, { task_loss: WAVES, max_vio: WAVES });
  for (const kind of [lossChart(), maxVioChart()]) {
    const { chart, ctx } = chartOf(kind, store, { smoothing: 0.6 });
    const [raw, thick] = [lines(ctx, "thin").at(-1), lines(ctx, "line").at(-1)]; // a thick one comes in stretches
    near(raw.at(-1)[1], chart.frame.y(WAVES.at(-1)), 1e-5);
    near(thick.at(-1)[1], chart.frame.y(meanAt(39, 0.6)), 1e-5);
  }
});

test("the loss is read with its batch and, where there was one, its held-out loss", () => {
  const store = storeWith(STEPS, { task_loss: WAVES, eval_loss: STEPS.map((step) => (step === 25 ? 2.5 : NaN)) });
  const loss = chartOf(lossChart(), store);
  assert.deepEqual(readout(loss, 25)[2], "held-out 2.5");
  assert.equal(readout(loss, 26).length, 2);
  assert.match(loss.chart.describe(), /^Task loss at step 39: [\d.]+, smoothed 0.94; held-out 2.5 at step 25\.$/);
  loss.view.at = 20;
  assert.match(loss.chart.describe(), /^Task loss at step 20: [\d.]+, smoothed 0.94\.$/);
});

test("the usual mean of the loss is the one taken when every step was there", () => {
  const store = storeWith(STEPS, { task_loss: WAVES });
  store.smooth_loss.fill(7);
  const loss = chartOf(lossChart(), store);
  assert.equal(said(readout(loss, 30), "smoothed 0.94: "), 7);
  loss.view.smoothing = USUAL;
  loss.chart.draw(store);
  near(said(readout(loss, 30), "smoothed 0.94: "), meanAt(30, USUAL), 6e-3, "another one is taken of what is left");
});

test("what is said of the loss may be newer than what is drawn", () => {
  const store = storeWith(STEPS, { task_loss: WAVES });
  const loss = chartOf(lossChart(), store, { smoothing: 0.6 });
  give(store, [40], { task_loss: [3] });
  assert.match(loss.chart.describe(), /^Task loss at step 40: [\d.]+, smoothed 0.60\.$/);
});

test("a curve that is switched off is neither painted nor does the axis reach for it", () => {
  const store = storeWith(STEPS, { task_loss: STEPS.map((step) => (step % 2 ? 90 : 1)) });
  const { chart, ctx, card: place } = chartOf(lossChart(), store);
  assert.ok(chart.axisNow[1][1] >= 90 && lines(ctx, "thin").length === 1);
  place.hidden.add("task_loss");
  ctx.calls = [];
  chart.draw(store);
  assert.ok(chart.axisNow[1][1] < 90 && lines(ctx, "thin").length === 0);
});

test("MaxVio is the chosen layer's, beside a fair router's, and layers are named at their ends", () => {
  const store = storeWith([0, 1], { max_vio: [[1, 5], [2, 4]], fair_max_vio: [0.5, 0.25] }, { layers: 2 });
  const second = chartOf(maxVioChart(), store, { layer: 1 });
  assert.deepEqual(readout(second, 1), ["MaxVio 4 (layer 1)", "fair router 0.25"]);
  assert.match(second.chart.describe(), /^MaxVio at step 1, layer 1: 4; a perfectly fair router would show 0.25\.$/);
  assert.deepEqual(second.ctx.asked("fillText").map(({ given }) => given[0]).sort(), ["L0", "L1"]);
  assert.ok(second.chart.axisNow[1][1] >= 5, "all layers fit");
  assert.ok(chartOf(maxVioChart(), storeWith([0], { fair_max_vio_p95: [30] })).chart.axisNow[1][1] >= 30);
});

test("dropped pairs are read as a share, and a chart without any says why", () => {
  const noteOf = (store, more) => chartOf(droppedChart(), store, more).chart.note;
  const some = storeWith([0, 1], { dropped_fraction: [0, 0.031] }, { knobs: HALF });
  const dropping = chartOf(droppedChart(), some);
  assert.deepEqual(readout(dropping, 1), ["dropped 3.1 %"]);
  near(lines(dropping.ctx, "dropped").at(-1).at(-1)[1], dropping.chart.frame.y(3.1));
  const few = storeWith([0, 1], { dropped_fraction: [0, 0.001] }, { knobs: HALF });
  assert.ok(chartOf(droppedChart(), few).chart.axisNow[1][1] >= 1, "few look like few");
  assert.equal(dropping.chart.describe(), "Dropped pairs at step 1: 3.1 %.");
  assert.ok(noteOf(some).hidden);
  const none = storeWith([0, 1], {}, { knobs: HALF });
  assert.ok(noteOf(none).hidden);
  assert.equal(noteOf(none, { logValues: true }).textContent, "Nothing is dropped: 0 has no place on a log axis.");
  const off = storeWith([0, 1], {}, { knobs: OFF });
  assert.equal(noteOf(off).textContent, "Nothing is dropped: token dropping is off.");
  assert.ok(noteOf(storeWith([], {}, { knobs: OFF })).hidden);
});

const BIASES = [[0, 0, 0, 0], [0.5, 0.25, 0.75, 0.5], [1, 0.5, 2, 0.5]];

test("biases are drawn and read against their mean, which changes no choice", () => {
  const bias = chartOf(biasChart(), storeWith([0, 1, 2], { bias: BIASES }, { knobs: { bias_rule: "sign" } }));
  assert.deepEqual(readout(bias, 2), ["highest 1 (expert 2)", "lowest -0.5 (expert 1)", "mean b = 1"]);
  const [low, high] = bias.chart.axisNow[1];
  assert.ok(low <= -0.5 && high >= 1 && high < 2, "relative to the mean");
  const y = bias.chart.frame.y(0.9);
  assert.equal(bias.chart.pointed(BOX.right, y).expert, 2, "the nearest line");
  assert.equal(bias.chart.pointed(BOX.right, bias.chart.frame.y(0.5)).expert, -1, "none is within reach");
  bias.view.expert = 0;
  assert.deepEqual(readout(bias, 2), ["expert 0: 0 (b = 1)"]);
  assert.match(bias.chart.describe(), /^Selection bias at step 2, relative to its mean 1: from −0.5 \(expert 1\) to 1/);
});

test("without a bias the chart says so and nobody is pointed at", () => {
  const bias = chartOf(biasChart(), storeWith([0, 1], {}, { knobs: OFF }));
  assert.match(bias.chart.note.textContent, /^No bias/);
  assert.equal(bias.chart.pointed(BOX.right, bias.chart.frame.y(0)).expert, -1);
  assert.ok(chartOf(biasChart(), storeWith([0, 1], {}, { knobs: { bias_rule: "sign" } })).chart.note.hidden);
});

// The colour of an expert's row at a place of the load history, as [red, green, blue].
function heat({ ctx }, x, expert) {
  const [sheet] = ctx.asked("drawImage").at(-1).given;
  const { width, data } = sheet.getContext().asked("putImageData").at(-1).given[0];
  const at = 4 * (expert * width + Math.round(x - BOX.left));
  return [...data.subarray(at, at + 3)];
}

const tone = (relative) => cividis(Math.min(255, Math.round(255 * Math.sqrt(relative / 4))) / 255);

test("the load history has the colour of each load where its step is, on either axis", () => {
  const load = STEPS.map((step) => [step, 40 - step, 20, 140]);
  const store = storeWith(STEPS, { load });
  for (const logSteps of [false, true]) {
    const history = chartOf(historyChart(), store, { logSteps });
    for (const step of logSteps ? [1, 2, 3, 6] : [5, 17, 30, 38]) {
      // Plotly's place of the step; an entry's pixels go on to the next one's.
      const [low, high] = history.chart.axisNow[0];
      const x = BOX.left + (((logSteps ? Math.log10(step) : step) - low) / (high - low)) * BOX.width + 3;
      load[step].forEach((one, expert) => {
        const [seen, expected] = [heat(history, x, expert), tone(one / 50)];
        const off = expected.map((part, k) => Math.abs(part - seen[k]));
        assert.ok(Math.max(...off) < 4, `step ${step}, expert ${expert}: ${seen} for ${expected}`);
      });
    }
  }
});

test("the load history is read by expert, and says who gets much and little", () => {
  const history = chartOf(historyChart(), storeWith([0, 1], { load: [[1, 1, 1, 1], [0, 10, 5, 5]] }));
  assert.deepEqual(readout(history, 1), ["expert 1: 2 × balanced"], "the busiest");
  history.view.expert = 2;
  assert.deepEqual(readout(history, 1), ["expert 2: 1 × balanced"]);
  for (const row of [0, 1, 2, 3]) {
    assert.equal(history.chart.pointed(BOX.left, BOX.top + ((row + 0.5) / 4) * BOX.height).expert, row);
  }
  assert.match(history.chart.describe(), /of 4 experts up to step 1: there 0 get more than twice and 1 less than half/);
});

function bars(store, more = {}) {
  const { frame, card: place, shared, view } = card("load");
  const chart = new LoadChart(place, shared);
  frame.fillKey(place, chart.kind.keys);
  chart.wear(THEME);
  Object.assign(view, more);
  chart.draw(store);
  return { chart, view, place, ctx: chart.canvas.getContext("2d") };
}

const LOADS = { load: [[100, 100, 100, 100], [240, 120, 40, 0]], kept_load: [[100, 100, 100, 100], [160, 120, 40, 0]] };
const FAIR = { fair_max_vio_p95: [0.1, 0.3], fair_min_load_p05: [0.9, 0.75] };

test("bars are as high as loads and as wide as their place, the dropped part on top", () => {
  const { chart, ctx, place } = bars(storeWith([0, 1], { ...LOADS, ...FAIR }, { knobs: HALF }));
  const [bottom, top] = chart.extent.range;
  assert.ok(bottom === 0 && top >= 264, "a tenth is left for signs");
  const high = (load) => (load / top) * BOX.height;
  const painted = ctx.asked("fillRect").filter(({ fillStyle }) => ["bar", "barOver"].includes(fillStyle));
  assert.deepEqual(painted.map(({ fillStyle }) => fillStyle), ["barOver", "bar", "bar", "bar"], "over the fair band");
  painted.forEach(({ given: [x, y, width, height] }, expert) => {
    near(x + width / 2, BOX.left + ((expert + 0.5) / 4) * BOX.width, 0.02);
    near(width, (0.84 * BOX.width) / 4, 0.02);
    near(y + height, BOX.bottom, 0.01);
    assert.ok(Math.abs(height - high([160, 120, 40, 0][expert])) <= 1, `expert ${expert}`);
  });
  const band = ctx.asked("fillRect").find(({ fillStyle }) => fillStyle === "band").given;
  near(band[1], BOX.bottom - high(130));
  near(band[3], high(130) - high(75));
  assert.ok(key(place).hatch);
});

test("the load chart knows who is over the band and dead, and reads each expert", () => {
  const { chart, view, ctx } = bars(storeWith([0, 30], { ...LOADS, ...FAIR }, { knobs: HALF }));
  assert.deepEqual(chart.now.over, [true, false, false, false]);
  assert.deepEqual(chart.now.dead, [false, false, false, true]);
  assert.deepEqual(ctx.asked("fillText").map(({ given }) => given[0]), ["▲", "✕"]);
  const read = (expert) => {
    view.hover = { expert, panel: chart };
    chart.showCursor();
    return chart.readoutBox.textContent.split("\n");
  };
  assert.deepEqual(read(0), [
    "expert 0: 240 tokens", "2.4 × balanced (100)", "80 of them dropped", "above the fair band",
  ]);
  assert.deepEqual(read(3), ["expert 3: 0 tokens", "0 × balanced (100)", "dead: under 1 % of the mean load"]);
  assert.match(chart.describe(), /at step 30: expert 0 is busiest with 240 tokens, balanced would be 100;/);
  assert.match(chart.describe(), /; 1 of 4 above the fair band, 1 dead\.$/);
});

test("a click on a bar selects its expert, and at a past moment the heading says so", () => {
  const { chart, view, place } = bars(storeWith([0, 1], { ...LOADS, ...FAIR }));
  for (const expert of [0, 3]) {
    chart.clicked(BOX.left + ((expert + 0.5) / 4) * BOX.width);
    assert.equal(view.expert, expert);
  }
  assert.equal(chart.pointed(BOX.right).expert, 3, "at the edge");
  assert.equal(place.title.textContent, "Title of load");
  view.at = 0;
  chart.draw(chart.store);
  assert.deepEqual([place.title.textContent, chart.now.loads], ["Expert load at step 0", [100, 100, 100, 100]]);
  assert.equal(key(place).hatch, undefined, "nothing is dropped, and nothing could be");
  const whole = storeWith([0], { load: [[9, 9, 9, 9]], kept_load: [[9, 9, 9, 9]] }, { knobs: HALF });
  assert.ok(key(bars(whole).place).hatch, "something could be");
});

test("groups of experts are named and parted", () => {
  const store = storeWith([0], { load: [new Array(16).fill(10)] }, { experts: 16, knobs: { num_groups: 4 } });
  const { ctx } = bars(store);
  assert.deepEqual(ctx.asked("fillText").map(({ given }) => given[0]), ["group 0", "group 1", "group 2", "group 3"]);
  const parts = lines(ctx, "muted").map(([[x]]) => x);
  parts.forEach((x, i) => near(x, BOX.left + ((i + 1) / 4) * BOX.width));
  assert.equal(parts.length, 3);
});
