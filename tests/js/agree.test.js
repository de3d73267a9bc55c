// When is the page's script told that the run is not as it believes?

import assert from "node:assert/strict";
import test from "node:test";

import { element, fire, ownClock, pass } from "./page.js";

import { Agreement } from "../../moeviz/live/static/agree.js";

ownClock();

const RUN = { status: "ready", playing: true, epoch: 1, version: 0, message: "m", notice: "not asked for" };
const KNOWN = { status: "ready", playing: true, epoch: 1, version: 0 };

// Answers every tenth of a second for so long; returns what the script was told.
async function answered(agreement, known, state, ms) {
  for (let passed = 0; passed < ms; passed += 100) {
    await pass(100);
    agreement.check(known, state);
  }
  return agreement.heard;
}

function agreeing() {
  const heard = [];
  return Object.assign(new Agreement((change) => heard.push(change)), { heard });
}

const PAUSED = { ...RUN, playing: false };
const TOLD = { status: "ready", playing: false, message: "m" };

test("while both agree nothing is told", async () => {
  assert.deepEqual(await answered(agreeing(), KNOWN, RUN, 3000), []);
});

test("a difference is told once, and only when it lasts", async () => {
  const agreement = agreeing();
  assert.deepEqual(await answered(agreement, KNOWN, PAUSED, 600), [], "just after a click");
  assert.ok(agreement.since, "the page may look whether they agree");
  assert.deepEqual(await answered(agreement, KNOWN, PAUSED, 20_000), [TOLD]);
});

test("a difference that ends in time is none, and the next one has to last again", async () => {
  const agreement = agreeing();
  for (let k = 0; k < 5; k++) {
    await answered(agreement, KNOWN, PAUSED, 500);
    await answered(agreement, KNOWN, RUN, 100);
    assert.equal(agreement.since, 0);
  }
  assert.deepEqual(agreement.heard, []);
});

test("another difference is told as well, and the same one again after they agreed", async () => {
  const agreement = agreeing();
  await answered(agreement, KNOWN, PAUSED, 1000);
  await answered(agreement, KNOWN, { ...PAUSED, epoch: 2 }, 1000);
  assert.equal(agreement.heard.length, 2);
  await answered(agreement, { ...KNOWN, version: 1 }, { ...PAUSED, epoch: 2 }, 1000);
  assert.equal(agreement.heard.length, 3, "what the script believes has changed");
  await answered(agreement, KNOWN, RUN, 200);
  await answered(agreement, { ...KNOWN, version: 1 }, { ...PAUSED, epoch: 2 }, 1000);
  assert.equal(agreement.heard.length, 4);
});

for (const type of ["pointerdown", "pointerup", "click", "keydown"]) {
  test(`while the visitor's hand is at work (${type}) nothing is told`, async () => {
    const agreement = agreeing();
    for (let k = 0; k < 10; k++) {
      fire(element("button"), type);
      await answered(agreement, KNOWN, PAUSED, 200);
    }
    assert.deepEqual(agreement.heard, []);
    assert.deepEqual(await answered(agreement, KNOWN, PAUSED, 300), [TOLD], "when it rests");
  });
}

test("a run that is gone is told at once, and again every five seconds", async () => {
  const gone = { status: "released", playing: false, message: "Nobody was watching." };
  const agreement = agreeing();
  assert.deepEqual(await answered(agreement, KNOWN, gone, 100), [gone]);
  await answered(agreement, KNOWN, gone, 4800);
  assert.equal(agreement.heard.length, 1);
  await answered(agreement, KNOWN, gone, 600);
  assert.equal(agreement.heard.length, 2);
});
