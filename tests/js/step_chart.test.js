// Does a chart over steps paint, point and zoom where its axes say, and say what they show?

import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { leave } from "./page.js";

import { BOX, chartOf, lines } from "./charts.js";

import { biasChart } from "../../moeviz/live/static/bias_chart.js";
import { droppedChart } from "../../moeviz/live/static/dropped_chart.js";
import { historyChart } from "../../moeviz/live/static/history_chart.js";
import { lossChart } from "../../moeviz/live/static/loss_chart.js";
import { maxVioChart } from "../../moeviz/live/static/max_vio_chart.js";
import { near } from "./oracles.js";
import { count, give, storeWith } from "./stores.js";

afterEach(leave);

const STEPS = [1, 2, 5, 30, 100, 150];
const VALUES = [8, 0.5, 6, 0.25, 3, 0.75];
const run = () => storeWith(STEPS, { max_vio: VALUES });

// Where Plotly has a value on an axis of which it was told range and type.
function share(value, [low, high], type) {
  const place = type === "log" ? Math.log10(value) : value;
  return (place - low) / (high - low);
}

function placeOf(chart, step, value) {
  const [[steps, values], [stepType, valueType]] = [chart.axisNow, chart.axisTypes];
  const [x, y] = [share(step, steps, stepType), share(value, values, valueType)];
  return [BOX.left + x * BOX.width, BOX.bottom - y * BOX.height];
}

for (const [logSteps, logValues] of [[false, false], [false, true], [true, false], [true, true]]) {
  const types = [logSteps, logValues].map((log) => (log ? "log" : "linear"));
  test(`the line lies where the axes have its steps and values: ${types.join(" steps, ")} values`, () => {
    const { chart, ctx } = chartOf(maxVioChart(), run(), { logSteps, logValues });
    assert.deepEqual(chart.axisTypes, types);
    const [points] = lines(ctx, "line");
    assert.equal(points.length, STEPS.length);
    points.forEach(([x, y], i) => {
      const [expectedX, expectedY] = placeOf(chart, STEPS[i], VALUES[i]);
      near(x, expectedX);
      near(y, expectedY);
    });
  });
}

test("which charts have a logarithmic axis of values, and that all have one of steps", () => {
  const kinds = [historyChart(), biasChart(), maxVioChart(), lossChart(), droppedChart()];
  const types = kinds.map((kind) => chartOf(kind, run(), { logSteps: true, logValues: true }).chart.axisTypes);
  assert.deepEqual(types.map(([steps]) => steps), ["log", "log", "log", "log", "log"]);
  assert.deepEqual(types.map(([, values]) => values), ["linear", "linear", "log", "log", "log"]);
});

test("the axis of steps says when some are missing, and that a logarithmic one has no 0", () => {
  const titleOf = (store, more) => chartOf(maxVioChart(), store, more).chart.moving()["xaxis.title.text"];
  assert.equal(titleOf(storeWith(count(0, 50))), "step");
  assert.equal(titleOf(storeWith([0, 5, ...count(10, 50)])), "step (older ones thinned, extremes kept)");
  assert.equal(titleOf(storeWith([0, ...count(9000, 9500)]), { window: "200" }), "step", "none of those shown");
  assert.equal(titleOf(storeWith(count(0, 50)), { logSteps: true }), "step (log, no 0)");
});

test("a logarithmic axis has round numbers, as many as have room", () => {
  const ticks = (values) => {
    const store = storeWith(count(1, values.length + 1), { max_vio: values });
    return chartOf(maxVioChart(), store, { logValues: true }).chart.moving()["yaxis.tickvals"];
  };
  assert.deepEqual(ticks([0.25, 8]), [0.1, 0.2, 0.5, 1, 2, 5, 10]);
  assert.deepEqual(ticks([2.5, 9]), [2, 3, 5, 10]);
  assert.deepEqual(ticks([0.001, 900]), [0.001, 0.01, 0.1, 1, 10, 100, 1000]);
});

test("on a logarithmic axis of steps the first one shown is 1", () => {
  const { chart, ctx } = chartOf(maxVioChart(), storeWith(count(0, 4), { max_vio: [9, 1, 8, 2] }), { logSteps: true });
  assert.equal(lines(ctx, "line")[0].length, 3);
  assert.deepEqual(chart.frame.range, [1, 20]);
  chartOf(maxVioChart(), storeWith([0]), { logSteps: true }); // and of step 0 alone nothing is painted
});

test("a unit says that its axis is logarithmic", () => {
  const unit = (kind) => chartOf(kind, run(), { logValues: true }).card.unit.textContent;
  assert.deepEqual([unit(maxVioChart()), unit(biasChart())], ["unit · log, no 0", "unit"]);
});

const dragged = (low, high) => ({ "xaxis.range[0]": low, "xaxis.range[1]": high });

test("a zoom by hand is one of steps, not of their logarithms, and never too narrow", () => {
  const { chart, view } = chartOf(maxVioChart(), run());
  chart.relaid(dragged(29.6, 80.2));
  assert.deepEqual(view.zoom, [29, 81]);
  chart.relaid({ "xaxis.range": [0, 7] });
  assert.deepEqual(view.zoom, [29, 81], "our own changes come as a whole range");
  chart.relaid(dragged(50.1, 50.2));
  assert.deepEqual(view.zoom, [48, 53]);
  chart.relaid(dragged(-3, 1));
  assert.equal(view.zoom[0], 0);
  const log = chartOf(maxVioChart(), run(), { logSteps: true });
  log.chart.relaid(dragged(Math.log10(5), Math.log10(60)));
  near(log.view.zoom[0], 5);
  near(log.view.zoom[1], 60);
  log.chart.draw(run());
  assert.deepEqual(log.chart.axisNow[0], log.view.zoom.map(Math.log10));
});

test("the pointer finds the nearest kept step, and its step is marked on every chart", () => {
  for (const logSteps of [false, true]) {
    const { chart, view } = chartOf(maxVioChart(), run(), { logSteps });
    for (const step of STEPS) {
      const [x] = placeOf(chart, step, 1);
      assert.equal(chart.pointed(x + 0.4, 80).step, step);
      view.hover = { step };
      chart.showCursor();
      near(Number.parseFloat(chart.cursor.style.left), x);
      assert.ok(!chart.cursor.hidden && !chart.readoutBox.hidden);
      assert.match(chart.readoutBox.textContent, new RegExp(`^step ${step}\nMaxVio ${VALUES[STEPS.indexOf(step)]}\n`));
    }
  }
});

test("a step that is not in sight is not marked, and neither is an expert without a step", () => {
  const { chart, view } = chartOf(maxVioChart(), run(), { window: "200" });
  for (const hover of [{ step: 900 }, { expert: 3 }, null]) {
    view.hover = hover;
    chart.showCursor();
    assert.ok(chart.cursor.hidden && chart.readoutBox.hidden);
  }
  Object.assign(view, { at: 30, hover: { expert: 3 } });
  chart.showCursor();
  assert.ok(chart.readoutBox.hidden);
});

test("a cursor beside a mark tells what changed, on the chart pointed at", () => {
  const store = storeWith(count(0, 100), { version: count(0, 100).map((step) => Number(step >= 40)) });
  store.labels.set(1, "u 0.003 → 0.1");
  const { chart, view } = chartOf(maxVioChart(), store);
  const told = (step, panel = chart) => {
    view.hover = { step, panel };
    chart.showCursor();
    return chart.readoutBox.textContent.includes("changed at 40: u 0.003 → 0.1");
  };
  assert.deepEqual([told(40), told(41), told(45), told(40, "another")], [true, true, false, false]);
});

test("a past moment is read without a pointer, and what came after it is faint", () => {
  const store = storeWith(count(0, 100), { max_vio: count(0, 100) });
  const { chart, ctx } = chartOf(maxVioChart(), store, { at: 60 });
  chart.showCursor();
  assert.ok(chart.cursor.hidden);
  assert.match(chart.readoutBox.textContent, /^step 60\nMaxVio 60\n/);
  const [x] = placeOf(chart, 60, 0);
  const veil = ctx.asked("fillRect").find(({ fillStyle }) => fillStyle === "background");
  near(veil.given[0], x);
  assert.ok(veil.given[0] + veil.given[2] >= placeOf(chart, 99, 0)[0]);
  assert.equal(veil.globalAlpha, 0.75);
  const live = chartOf(maxVioChart(), store);
  assert.ok(!live.ctx.asked("fillRect").some(({ fillStyle }) => fillStyle === "background"));
});

test("it is drawn again when something it shows has changed, and only then", () => {
  const store = storeWith(count(0, 50), { max_vio: count(0, 50) });
  const { chart, view } = chartOf(maxVioChart(), store);
  assert.equal(chart.draw(store), false);
  give(store, [50]);
  assert.equal(chart.draw(store), true);
  const changes = { smoothing: 0.6, logValues: true, logSteps: true, expert: 3, at: 20, zoom: [3, 9], until: 40 };
  for (const [name, value] of Object.entries(changes)) {
    view[name] = value;
    assert.equal(chart.draw(store), true, name);
    assert.equal(chart.draw(store), false, name);
  }
  store.labels.set(1, "u");
  assert.equal(chart.draw(store), true);
});

test("while drawing is paused new data draw nothing", () => {
  const store = storeWith(count(0, 50), { max_vio: count(0, 50) });
  const { chart, view } = chartOf(maxVioChart(), store, { until: 49 });
  give(store, count(50, 120));
  assert.equal(chart.draw(store), false);
  view.expert = 3;
  assert.equal(chart.draw(store), true);
  assert.equal(chart.frame.end, 49, "looking elsewhere shows nothing newer");
  assert.equal(chart.pointed(BOX.right, 80).step, 49, "neither does pointing");
  view.until = null;
  assert.equal(chart.draw(store), true);
  assert.equal(chart.frame.end, 119);
});

test("in words it says what it shows, at the moment that is shown", () => {
  assert.equal(chartOf(maxVioChart(), storeWith([])).chart.describe(), "No data yet.");
  const { chart, view } = chartOf(maxVioChart(), run());
  assert.match(chart.describe(), /^MaxVio at step 150: 0.75;/);
  view.at = 30;
  assert.match(chart.describe(), /^MaxVio at step 30: 0.25;/);
});

test("the text of a mark steps down where its neighbour's stands, and the fourth has no room", () => {
  const store = storeWith(count(0, 100), { version: count(0, 100).map((step) => Math.min(step, 4)) });
  for (const version of count(1, 5)) store.labels.set(version, `u ${version}`);
  const { ctx } = chartOf(maxVioChart(), store);
  const texts = ctx.asked("fillText").map(({ given: [text, , y] }) => [text, y]);
  assert.deepEqual(texts, [["u 1", 8], ["u 2", 22], ["u 3", 36]]);
});
