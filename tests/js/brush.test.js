// Does a line with fewer points look the same, and do names at the ends of lines lie beside each other?

import assert from "node:assert/strict";
import test from "node:test";

import { apart, area, line } from "../../moeviz/live/static/brush.js";
import { randomNumbers } from "./oracles.js";

// A canvas' context that notes what is stroked: a list of strokes, each a list of parts, each a list of points.
class FakeCanvas {
  strokes = [];
  dashes = [];
  arcs = [];

  beginPath() {
    this.strokes.push([]);
  }

  moveTo(x, y) {
    this.strokes.at(-1).push([[x, y]]);
  }

  lineTo(x, y) {
    this.strokes.at(-1).at(-1).push([x, y]);
  }

  arc(x, y) {
    this.arcs.push([x, y]);
  }

  setLineDash(dash) {
    this.dashes.push(dash);
  }

  stroke() {}
  fill() {}
  closePath() {}
}
globalThis.CanvasRenderingContext2D = FakeCanvas;

// Strokes of a line through such points, which are places on the canvas already. A height may be null.
function stroked(points, look, ctx = new FakeCanvas()) {
  const store = { step: points.map(([x]) => x) };
  const frame = { ctx, store, first: 0, last: points.length - 1, x: (x) => x, y: (y) => y ?? NaN };
  line(frame, (i) => points[i][1], { color: "red", ...look });
  return ctx.strokes;
}

function distance([x, y], [fromX, fromY], [toX, toY]) {
  const [wayX, wayY] = [toX - fromX, toY - fromY];
  const along = ((x - fromX) * wayX + (y - fromY) * wayY) / Math.max(wayX ** 2 + wayY ** 2, 1e-12);
  const share = Math.min(Math.max(along, 0), 1);
  return Math.hypot(x - fromX - share * wayX, y - fromY - share * wayY);
}

// How far the farthest of these points is from a line through the drawn ones.
function far(points, drawn) {
  const nearest = points.map((point) => {
    let least = Infinity;
    for (let k = 1; k < drawn.length; k++) {
      // A piece that is further to the side than the best one so far need not be looked at.
      if (drawn[k - 1][0] - point[0] > least || point[0] - drawn[k][0] > least) continue;
      least = Math.min(least, distance(point, drawn[k - 1], drawn[k]));
    }
    return least;
  });
  return Math.max(...nearest);
}

const COUNT = 1200; // three to a pixel
const GAP = 400;
const random = randomNumbers(1);
const shape = (height) => Array.from({ length: COUNT }, (_, k) => [k / 3, k === GAP ? null : height(k)]);
let walk = 0;
const SHAPES = {
  noise: shape(() => 60 + 20 * (random() + random() + random() + random() - 2)),
  "steps of the sign rule": shape(() => (walk += random() < 0.5 ? 1 : -1)),
  ripple: shape((k) => (k % 2 ? 0.1 : -0.1)),
  ramp: shape((k) => 0.7 * k),
  "an upward bend": shape((k) => k ** 2 / 5000),
  "a downward bend": shape((k) => -(k ** 2) / 5000),
  spike: shape((k) => (k === 700 ? 90 : 5)),
};
const SIMPLE = ["ripple", "ramp", "spike"];

const within = (one, other) => one.every((place, k) => Math.abs(place - other[k]) <= 0.5);

// Two parts share their corner, a point before the end of the first one, or lie on both sides of the gap.
function meet(one, other, points) {
  const atGap = within(one.at(-1), points[GAP - 1]) && other[0].join() === points[GAP + 1].join();
  return atGap || one.slice(-2).join() === other.slice(0, 2).join();
}

for (const width of [1, 2]) {
  for (const [name, points] of Object.entries(SHAPES)) {
    test(`${name}, ${width} px wide, looks the same with fewer points`, () => {
      const strokes = stroked(points, { width });
      const parts = strokes.flat();
      for (let k = 1; k < parts.length; k++) assert.ok(meet(parts[k - 1], parts[k], points), `part ${k}`);
      for (const [early, told] of [[true, points.slice(0, GAP)], [false, points.slice(GAP + 1)]]) {
        const drawn = parts.filter(([[x]]) => x < points[GAP][0] === early);
        assert.ok(far(told, drawn.flat()) < 0.55);
        assert.equal(drawn[0][0][0], told[0][0], "it begins where the line does");
        assert.ok(within(drawn.at(-1).at(-1), told.at(-1)), "it ends where the line does");
      }
      const longest = Math.max(...strokes.map((stroke) => stroke.flat().length));
      assert.ok(longest <= (width === 1 ? 3000 : 35), "thick lines are stroked in short stretches");
      if (SIMPLE.includes(name)) assert.ok(parts.flat().length <= 20, `${parts.flat().length} points`);
    });
  }
}

test("what falls on what is drawn already is left out", () => {
  const points = Array.from({ length: 100 }, (_, k) => [10 + k / 250, k % 2 ? 50 : 0]);
  assert.ok(stroked([[0, 0], ...points, [20, 0]], {}).flat(2).length < 8);
});

test("a dashed line is one stroke, so that its dashes go on evenly, and the next one is whole again", () => {
  const ctx = new FakeCanvas();
  assert.equal(stroked(SHAPES.noise, { width: 2, dash: [5, 4] }, ctx).length, 1);
  assert.deepEqual(ctx.dashes, [[5, 4], []]);
});

test("a line in a file is one stroke", () => {
  const pen = Object.assign(Object.create({}), Object.fromEntries(
    ["beginPath", "moveTo", "lineTo", "setLineDash", "stroke"].map((name) => [name, FakeCanvas.prototype[name]]),
  ), { strokes: [], dashes: [] });
  assert.equal(stroked(SHAPES.noise, { width: 2 }, pen).length, 1);
});

test("a single step is a dot, unless it is no number", () => {
  for (const [height, places] of [[4, [[7, 4]]], [null, []]]) {
    const ctx = new FakeCanvas();
    stroked([[7, height]], {}, ctx);
    assert.deepEqual(ctx.arcs, places);
  }
});

test("a line through some entries alone goes through these", () => {
  const points = [[0, 0], [10, 50], [20, 0], [30, 50], [40, 0]];
  assert.deepEqual(stroked(points, { indices: [0, 2, 3] }), [[[[0, 0], [20, 0], [30, 50]]]]);
});

test("an area goes down to zero, or to the lower end of an axis that has none", () => {
  const ctx = new FakeCanvas();
  const heights = [30, NaN, 10];
  const frame = { ctx, store: { step: [0, 1, 2] }, first: 0, last: 2, x: (step) => 10 * step, box: { bottom: 100 } };
  area({ ...frame, y: (value) => (value === 0 ? NaN : 100 - value) }, (i) => heights[i], "red");
  area({ ...frame, y: (value) => 80 - value }, (i) => heights[i], "red");
  assert.deepEqual(ctx.strokes, [
    [[[0, 100], [0, 70], [10, 100], [20, 90], [20, 100]]],
    [[[0, 80], [0, 50], [10, 80], [20, 70], [20, 80]]],
  ]);
});

test("names at the ends of lines lie beside each other, in the lines' order and inside the chart", () => {
  const box = { top: 16, bottom: 166 };
  for (const heights of [[20, 21, 22, 23], [160, 165, 166, 166], [16, 90, 91, 166], [50, 40, 45]]) {
    const ends = apart(heights.map((y, name) => ({ name, y })), box);
    const places = ends.sort((a, b) => a.y - b.y || a.place - b.place).map(({ place }) => place);
    for (let k = 1; k < places.length; k++) assert.ok(places[k] - places[k - 1] >= 12 - 1e-9, `${heights}: ${places}`);
    const [highest, lowest] = [places[0] - 6, places.at(-1) + 6];
    assert.ok(highest >= box.top && lowest <= box.bottom, `${heights}: ${places}`);
  }
  const [alone] = apart([{ y: 70 }], box);
  assert.equal(alone.place, 70, "a name with room stays beside its line");
});
