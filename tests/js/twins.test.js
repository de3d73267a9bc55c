// Are twins compared as they should be, told apart, and is what is said of them true?

import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { click, leave } from "./page.js";

import { card, lines, THEME } from "./charts.js";

import { Lanes } from "../../moeviz/live/static/lanes.js";
import { USUAL } from "../../moeviz/live/static/smoothing.js";
import { CommonScale, TwinBars } from "../../moeviz/live/static/twin_bars.js";
import { TwinChart } from "../../moeviz/live/static/twin_chart.js";
import { figureOf, minus } from "../../moeviz/live/static/twin_figures.js";
import { clock, TwinHead, whatDiffers } from "../../moeviz/live/static/twin_head.js";
import { TwinHeat } from "../../moeviz/live/static/twin_heat.js";
import { twinKinds } from "../../moeviz/live/static/twin_lines.js";
import { letterOf, lookOf, symbolOf } from "../../moeviz/live/static/twin_look.js";
import { TwinsView } from "../../moeviz/live/static/twins_view.js";
import { meanByHand, near } from "./oracles.js";
import { count, storeWith } from "./stores.js";

afterEach(leave);

const STEPS = count(0, 40);
const waves = (shift) => STEPS.map((step) => 3 + 2 * Math.sin(step + shift) + (step % 3));
const ones = (n) => new Array(n).fill(1);
const meanAt = (values, index, weight) => meanByHand(values.slice(0, index + 1), ones(index + 1), weight);
const BASE = { parent: null, since: 0, differences: [], diverged: "", parted: null };
const TWIN = { parent: 0, since: 0, differences: ["u 0.003 → 0.1"], diverged: "", parted: { step: 5, token: 37 } };

// Twins as lanes.js keeps them, by letter.
function lanesOf(stores) {
  const lanes = new Lanes();
  lanes.all = Object.entries(stores).map(([name, store], i) => {
    return { id: i, name, store, said: { ...(i ? TWIN : BASE), id: i, name }, bare: store };
  });
  [lanes.face] = lanes.all.map(({ store }) => store).sort((a, b) => b.lastStep - a.lastStep);
  return lanes;
}

const USUALLY = { smoothing: null, logValues: false, logSteps: false };
const viewOf = (lanes, more) => Object.assign(new TwinsView(() => {}, () => lanes.face), USUALLY, more);
const frameOf = (store, more = {}) => {
  const last = store.count - 1;
  return { store, layer: 0, first: 0, last, end: last, view: viewOf({ face: store }, more) };
};

test("the difference is the twin's mean minus the base's, step by step", () => {
  const [a, b] = [waves(0), waves(1)];
  for (const [figure, name] of [["loss", "task_loss"], ["max_vio", "max_vio"]]) {
    const [base, twin] = [a, b].map((values) => storeWith(STEPS, { [name]: values }));
    for (const [smoothing, weight] of [[null, USUAL], [0.6, 0.6]]) {
      const { strong, faint } = minus(frameOf(twin, { smoothing }), base, figure);
      for (const i of [0, 7, 39]) {
        const expected = meanAt(b, i, weight) - meanAt(a, i, weight);
        assert.ok(Math.abs(strong(i) - expected) < 1e-5, `${figure} at ${i}`);
        assert.ok(Math.abs(faint(i) - (b[i] - a[i])) < 1e-5);
      }
    }
    const raw = minus(frameOf(twin, { smoothing: 0 }), base, figure);
    assert.equal(raw.faint, null);
    assert.ok(Math.abs(raw.strong(7) - (b[7] - a[7])) < 1e-5);
  }
});

test("where the base lacks a step its mean is read between two, a single step is compared with the same alone", () => {
  const base = storeWith([10, 20, 30], { task_loss: [1, 2, 4] });
  base.smooth_loss.set([1, 2, 4]);
  const twin = storeWith([5, 10, 14, 30, 35], { task_loss: [9, 9, 9, 9, 9] });
  twin.smooth_loss.set([9, 9, 9, 9, 9]);
  const { strong, faint } = minus(frameOf(twin), base, "loss");
  const seen = (value) => [0, 1, 2, 3, 4].map((i) => value(i));
  assert.deepEqual(seen(strong), [NaN, 8, 9 - 1.4, 5, NaN]);
  assert.deepEqual(seen(faint), [NaN, 8, NaN, 5, NaN]);
});

test("each figure is the column it names, in the unit of its axis", () => {
  const store = storeWith([0, 1], {
    max_vio: [[1, 2], [3, 4]],
    bias: [[0, 1, 0, 0, 0, 0, 0, 3], [0, 2, 0, 0, 0, 0, 0, 5]],
    dropped_fraction: [[0, 0.25], [0, 0.5]],
    routed_differently: [0.125, 0.5],
  }, { layers: 2 });
  const at = (figure, layer, smoothing = null) => {
    return figureOf({ ...frameOf(store, { smoothing }), layer }, figure).strong(1);
  };
  assert.deepEqual([at("spread", 0), at("spread", 1)], [2, 5]);
  assert.deepEqual([at("dropped", 0), at("dropped", 1)], [0, 50]);
  assert.deepEqual([at("routed", 0), at("max_vio", 1, 0)], [50, 4]);
  near(at("dropped", 1, 0.6), meanByHand([25, 50], [1, 1], 0.6));
  assert.equal(at("routed", 0, 0.6), 50, "what is not smoothed stays");
});

test("a heading says what differs, and from whom it was taken", () => {
  const nameOf = (id) => "ABCD"[id];
  assert.equal(whatDiffers(BASE, nameOf), "base");
  assert.equal(whatDiffers(TWIN, nameOf), "u 0.003 → 0.1");
  assert.equal(whatDiffers({ ...TWIN, differences: [] }, nameOf), "no difference yet");
  const branch = { ...TWIN, parent: 1, since: 20, differences: ["u 1", "top_k 2"] };
  assert.equal(whatDiffers(branch, nameOf), "u 1; top_k 2, from B at step 20");
});

test("a clock says where a twin parted, or that it has not", () => {
  const store = storeWith([0, 1, 4, 5, 6], { routed_differently: [0, 0, 0, 0.031, NaN] });
  const at = (index, said = {}) => clock({ said: { ...TWIN, ...said }, store }, index);
  assert.equal(at(1), "identical so far: 1 step");
  assert.equal(at(2), "identical so far: 4 steps");
  assert.equal(at(3), "parted at step 5, token 37 · 3.1 % differ now");
  assert.equal(at(4), "parted at step 5, token 37");
  assert.equal(at(3, { parted: null }), "identical so far: 5 steps");
  assert.equal(at(-1), "had not begun by then");
  assert.equal(clock({ said: BASE, store }, 3), "what the others are compared with");
});

test("a column's heading has four numbers of its own twin, its layer and its moment", () => {
  const perLayer = { max_vio: [[1, 2], [3, 4.125]], dead_experts: [[0, 0], [1, 2]] };
  const dropped = { dropped_fraction: [[0, 0], [0, 0.1]] };
  const store = storeWith([0, 1], { eval_loss: [3, 2.5], ...perLayer, ...dropped }, { layers: 2 });
  const lanes = lanesOf({ A: storeWith([0]), B: store });
  const chosen = [];
  const head = new TwinHead(lanes.all[1], (id) => chosen.push(id));
  const drawn = (index, view = {}) => {
    head.draw(lanes.all[1], index, { layer: 0, twin: 0, ...view }, () => "A");
    return Object.values(head.values).map((value) => value.textContent);
  };
  assert.deepEqual(drawn(1), ["2.500", "3.00", "1 / 4", "0 %"]);
  assert.deepEqual(drawn(1, { layer: 1 }), ["2.500", "4.13", "2 / 4", "10 %"]);
  assert.deepEqual(drawn(0), ["3.000", "1.00", "0 / 4", "0 %"]);
  assert.deepEqual(drawn(-1), ["–", "–", "–", "–"]);
  assert.equal(head.root.getAttribute("aria-label"), "Twin B: u 0.003 → 0.1");
  assert.equal(head.choose.getAttribute("aria-pressed"), "false");
  assert.ok(head.stopped.hidden && !head.root.classList.contains("still"));
  lanes.all[1].said.diverged = "Training diverged at step 2.";
  drawn(1, { twin: 1 });
  assert.equal(head.stopped.textContent, "Training diverged at step 2.");
  assert.ok(!head.stopped.hidden && head.root.classList.contains("still"));
  assert.equal(head.choose.getAttribute("aria-pressed"), "true");
  click(head.choose);
  assert.deepEqual(chosen, [1]);
});

test("a twin keeps the look of its letter, also when others have gone", () => {
  assert.deepEqual(["A", "B", "C", "D"].map((name, id) => letterOf({ id: id + 3, name })), ["A", "B", "C", "D"]);
  assert.equal(letterOf({ id: 5, name: "E" }), "B", "one that has none takes the next");
  const light = { dark: false };
  const looks = ["A", "B", "C", "D"].map((name) => ({ ...lookOf({ name }, light), mark: symbolOf({ name }) }));
  for (const part of ["color", "dash", "symbol", "mark"]) {
    assert.equal(new Set(looks.map((look) => String(look[part]))).size, 4, part);
  }
  assert.notEqual(lookOf({ name: "A" }, { dark: true }).color, looks[0].color);
});

test("the bars of all twins have one scale, with room for the highest", () => {
  const scale = new CommonScale();
  assert.ok(scale.over(98));
  const [bottom, top] = scale.range;
  assert.ok(bottom === 0 && top >= 1.1 * 98 && top <= 2.5 * 98);
  assert.equal(scale.fit(0, 9000), scale.range, "a chart alone does not decide");
  assert.ok(!scale.over(96));
  const heights = [40, 80].map((load) => {
    const { frame, card: place, shared: known } = card("load");
    const chart = new TwinBars({ ...place, twin: "B" }, known, scale);
    frame.fillKey(place, chart.kind.keys);
    chart.wear(THEME);
    chart.draw(storeWith([0], { load: [[load, 0, 0, 0]], kept_load: [[load, 0, 0, 0]] }));
    assert.match(chart.describe(), /^Twin B\. Expert load at step 0:/);
    const ctx = chart.canvas.getContext("2d");
    const bar = ctx.asked("fillRect").find(({ fillStyle }) => fillStyle.startsWith("bar"));
    assert.ok(ctx.asked("fillText").some(({ given }) => given[0] === String(top)), "its end is written beside it");
    return bar.given[3] / chart.box.height;
  });
  near(heights[0], 40 / top, 0.02);
  near(heights[1], 80 / top, 0.02);
});

// One of the charts that all twins share.
function shared(id, lanes, more = {}) {
  const view = viewOf(lanes, more);
  const kind = twinKinds(() => lanes, view).find((one) => one.id === id);
  const { frame, card: place, shared: known } = card(id, view);
  const chart = new TwinChart(place, known, kind);
  frame.fillKey(place, kind.keys);
  chart.wear(THEME);
  chart.draw(lanes.face);
  const read = (step) => kind.readout(chart.frame, lanes.face.indexOf(step)).map((line) => line.replace("−", "-"));
  return { chart, view, read, ctx: chart.canvas.getContext("2d") };
}

const VALUES = { A: waves(0), B: waves(1), C: waves(2) };
const three = (name) => lanesOf(Object.fromEntries(
  Object.entries(VALUES).map(([letter, values]) => [letter, storeWith(STEPS, { [name]: values })]),
));

test("a shared chart reads every twin at the step pointed at, in the order of their letters", () => {
  const { read, chart, view } = shared("max_vio", three("max_vio"), { twin: 1 });
  const lines = read(20);
  assert.deepEqual(lines.map((line) => line.split("  ")[0]), ["A", "B", "C"]);
  for (const line of lines) {
    const [letter, value] = line.split("  ");
    near(Number(value), meanAt(VALUES[letter], 20, USUAL), 6e-3);
  }
  assert.match(chart.describe(), /^MaxVio, smoothed 0.94, at step 39: A [\d.]+, B [\d.]+, C [\d.]+\.$/);
  view.smoothing = 0;
  chart.draw(chart.store);
  read(20).forEach((line, i) => near(Number(line.split("  ")[1]), Object.values(VALUES)[i][20], 6e-3));
});

test("a twin that had not begun or has stopped is read as none there", () => {
  const lanes = lanesOf({
    A: storeWith(STEPS, { max_vio: VALUES.A }),
    B: storeWith(count(20, 40), { max_vio: waves(1).slice(20) }),
    C: storeWith(count(0, 5), { max_vio: waves(2).slice(0, 5) }),
  });
  const { read, ctx } = shared("max_vio", lanes, { smoothing: 0 });
  const dashes = (step) => read(step).map((line) => line.endsWith("–"));
  assert.deepEqual(dashes(4), [false, true, false]);
  assert.deepEqual(dashes(10), [false, true, true]);
  assert.deepEqual(dashes(20), [false, false, true]);
  const ends = Object.fromEntries(ctx.asked("fillText").map(({ given: [letter, x] }) => [letter, Math.round(x)]));
  assert.deepEqual(Object.keys(ends).sort(), ["■B", "▲C", "●A"]);
  assert.ok(ends["▲C"] < ends["●A"] && ends["●A"] === ends["■B"], "each where its line ends");
});

test("the difference and the share that differs are of the others, beside the base's line", () => {
  const lanes = three("max_vio");
  lanes.all.forEach(({ store }, i) => store.routed_differently.set(STEPS.map((step) => (i ? i * step / 100 : NaN))));
  const difference = shared("difference", lanes, { figure: "max_vio" });
  for (const line of difference.read(25)) {
    const [letter, value] = line.split("  ");
    const expected = meanAt(VALUES[letter], 25, USUAL) - meanAt(VALUES.A, 25, USUAL);
    assert.ok(Math.abs(Number(value) - expected) <= 6e-3 * Math.abs(expected) + 1e-4, `${line} for ${expected}`);
  }
  assert.deepEqual(difference.read(25).map((line) => line[0]), ["B", "C"]);
  assert.match(difference.chart.describe(), /^Difference from A, MaxVio, smoothed 0.94, at step 39: B /);
  const { color } = lookOf({ name: "A" }, THEME);
  const base = difference.ctx.asked("fillRect").find(({ fillStyle }) => fillStyle === color);
  assert.ok(Math.abs(base.given[1] - difference.chart.frame.y(0)) <= 1);
  assert.deepEqual(shared("routed", lanes).read(25), ["B  25 %", "C  50 %"]);
});

test("letters of the difference stand where the lines end, the base's at zero", () => {
  const lanes = lanesOf(Object.fromEntries(
    Object.entries({ A: 3, B: 8, C: 0 }).map(([name, value]) => [name, storeWith([0, 1], { max_vio: [value, value] })]),
  ));
  const { chart, ctx } = shared("difference", lanes, { figure: "max_vio" });
  const places = Object.fromEntries(ctx.asked("fillText").map(({ given: [letter, , y] }) => [letter, y]));
  near(places["●A"], chart.frame.y(0));
  near(places["■B"], chart.frame.y(5));
});

test("who is alone is told how to compare, and what is switched off in all says so", () => {
  const noteOf = (id, lanes) => shared(id, lanes).chart.note.textContent;
  const off = (more) => ({ knobs: { bias_rule: "none", token_dropping: "none", ...more } });
  const alone = lanesOf({ A: storeWith([0, 1], {}, off()) });
  for (const id of ["difference", "routed"]) assert.equal(noteOf(id, alone), "Add a twin to compare with A.");
  assert.match(noteOf("spread", alone), /^No twin has a bias/);
  assert.match(noteOf("dropped", alone), /^Nothing is dropped/);
  const one = lanesOf({ A: storeWith([0, 1], {}, off()), B: storeWith([0, 1], {}, off({ token_dropping: "expert" })) });
  for (const id of ["difference", "routed", "dropped"]) assert.equal(noteOf(id, one), "");
});

test("a twin's line lies where the axes have its values, the chosen twin's on top", () => {
  const { chart, ctx } = shared("spread", lanesOf({
    A: storeWith([0, 1, 2], { bias: [[0, 0, 0, 0], [0, 0, 0, 4], [0, 0, 0, 1]] }),
    B: storeWith([0, 1, 2], { bias: [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 3]] }),
  }), { twin: 0 });
  const [low, high] = chart.axisNow[1];
  const { top, bottom } = chart.box;
  const [a] = lines(ctx, lookOf({ name: "A" }, THEME).color);
  a.forEach(([, y], i) => near(y, bottom - (([0, 4, 1][i] - low) / (high - low)) * (bottom - top)));
  const colors = ctx.asked("stroke").map(({ strokeStyle }) => strokeStyle);
  const place = (name) => colors.lastIndexOf(lookOf({ name }, THEME).color);
  assert.ok(place("A") > place("B"));
});

test("a small load history says when its twin had not begun", () => {
  const late = storeWith(count(20, 40));
  const view = viewOf({ face: storeWith(STEPS) });
  const { card: place, shared: known } = card("history", view);
  const heat = new TwinHeat({ ...place, twin: "B" }, known);
  heat.wear(THEME);
  heat.draw(late);
  assert.match(heat.describe(), /^Twin B\. Load history of 4 experts up to step 39/);
  view.at = 15;
  heat.draw(late);
  assert.match(heat.describe(), /This twin had not begun by then\.$/);
  const written = heat.canvas.getContext("2d").asked("fillText").map(({ given }) => given[0]);
  assert.ok(written.includes("step 40") && written.includes("3"), "the range is everybody's");
});
