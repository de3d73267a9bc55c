// Does the browser take in what Python says of twins?

import assert from "node:assert/strict";
import test from "node:test";

import { Lanes } from "../../moeviz/live/static/lanes.js";
import { answers, bytes, numbers, plain } from "./from_python.js";
import { column } from "./stores.js";

const [WHOLE, NEWS, NO_NEWS, ANOTHER, ANEW] = answers;

function taken(...some) {
  const lanes = new Lanes();
  const results = some.map(({ answer }) => lanes.take(bytes(answer)));
  return { lanes, results };
}

// Columns that the store keeps as they come, of all rows that these parts brought.
function assertHolds(lane, ...parts) {
  for (const name of ["step", "version", "task_loss", "eval_loss", "load", "kept_load", "bias", "max_vio"]) {
    const sent = parts.flatMap(({ columns }) => numbers(columns[name]));
    assert.deepEqual(plain(column(lane.store, name)), sent, name);
  }
}

test("a first answer brings every twin with its rows, its knobs and what is said about it", () => {
  const { lanes, results: [{ header, rows }] } = taken(WHOLE);
  const [overview, ...parts] = WHOLE.parts;
  assert.deepEqual(header, overview.header);
  assert.equal(rows, 10);
  assert.deepEqual(lanes.all.map(({ id, name }) => [id, name]), [[0, "A"], [3, "B"]]);
  lanes.all.forEach((lane, i) => {
    assertHolds(lane, parts[i]);
    assert.deepEqual(lane.said, overview.header.twins[i]);
    assert.deepEqual(lane.store.knobs, parts[i].header.knobs);
    assert.deepEqual(lane.store.recipe, overview.header.recipe);
    assert.equal(lane.store.labels.get(1), "u 0.003 → 0.1");
  });
  assert.equal(lanes.base, lanes.all[0]);
  assert.equal(lanes.byId(3).name, "B");
  assert.equal(lanes.byId(9), null);
});

test("the next answer brings new rows and new words, and leaves what was there", () => {
  const { lanes, results } = taken(WHOLE, NEWS);
  assert.equal(results[1].rows, 6);
  assertHolds(lanes.all[1], WHOLE.parts[2], NEWS.parts[2]);
  assert.deepEqual(lanes.byId(3).said.parted, { step: 3, token: 7 });
});

test("an answer without news leaves everything as it was", () => {
  const { lanes, results } = taken(WHOLE, NEWS, NO_NEWS);
  assert.equal(results[2].rows, 0);
  assertHolds(lanes.all[1], WHOLE.parts[2], NEWS.parts[2]);
  const [{ header }, , { header: told }] = WHOLE.parts;
  const { said, store } = lanes.byId(3);
  assert.deepEqual([store.recipe, store.knobs, said.name], [header.recipe, told.knobs, "B"]);
  assert.deepEqual(store.knobsOf.get(told.version), told.knobs);
});

test("what the server need not send again is the newest step and the settings of each twin", () => {
  assert.deepEqual(new Lanes().known(), { epoch: -1, told: -1, twins: {} });
  const { lanes } = taken(WHOLE);
  const [{ header }, a, b] = WHOLE.parts;
  const last = ({ columns }) => numbers(columns.step).at(-1);
  const twins = { 0: { after: last(a), version: 2 }, 3: { after: last(b), version: 2 } };
  assert.deepEqual(lanes.known(), { epoch: 7, told: header.told, twins });
});

test("a twin that went is gone, one that came is whole, and the others keep their rows", () => {
  const { lanes } = taken(WHOLE, NEWS, ANOTHER);
  assert.deepEqual(lanes.all.map(({ name }) => name), ["A", "C"]);
  assertHolds(lanes.all[0], WHOLE.parts[1], NEWS.parts[1], ANOTHER.parts[1]);
  assertHolds(lanes.all[1], ANOTHER.parts[2]);
});

test("another beginning forgets all rows, also those of a twin that is still there", () => {
  const { lanes } = taken(WHOLE, NEWS, ANOTHER, ANEW);
  assert.deepEqual([lanes.epoch, lanes.known().epoch], [8, 8]);
  lanes.all.forEach((lane, i) => assertHolds(lane, ANEW.parts[i + 1]));
});

test("one store stands for all: the steps of the twin that has come furthest, another one at every answer", () => {
  const { lanes } = taken(WHOLE);
  const furthest = Math.max(...lanes.all.map(({ store }) => store.lastStep));
  assert.equal(lanes.face.lastStep, furthest);
  assert.equal(lanes.face.knobs, lanes.base.store.knobs);
  const before = lanes.face.serial;
  lanes.take(bytes(NEWS.answer));
  assert.notEqual(lanes.face.serial, before);
  assert.equal(new Lanes().face.count, 0, "none yet");
});

test("a change of all twins is one mark, one of some says whose it is, and small charts have none", () => {
  const { lanes } = taken(WHOLE);
  const [a, b] = lanes.all;
  a.store.marks = [{ step: 5, from: 0, to: 1 }, { step: 9, from: 1, to: 2 }];
  b.store.marks = [{ step: 5, from: 0, to: 1 }, { step: 3, from: 1, to: 2 }];
  lanes.take(bytes(NEWS.answer));
  const told = lanes.face.marks.filter(({ step }) => [3, 5, 9].includes(step));
  assert.deepEqual(told.map((mark) => [mark.step, lanes.face.markText(mark)]), [
    [3, "B: top_k 2 → 1"], [5, "u 0.003 → 0.1"], [9, "A: top_k 2 → 1"],
  ]);
  assert.deepEqual(a.bare.marks, []);
  assert.equal(a.bare.lastStep, a.store.lastStep);
});
