// Do slider, arrows and buttons reach every kept step, and does the time bar say which one is shown?

import assert from "node:assert/strict";
import test from "node:test";

import { click, fire, press } from "./page.js";

import { Store } from "../../moeviz/live/static/store.js";
import { TimeBar } from "../../moeviz/live/static/time_bar.js";
import { View } from "../../moeviz/live/static/view.js";
import { column, count, give, giveRun, storeWith } from "./stores.js";

// A time bar over a store, drawn again after every change.
function showing(store, options = {}) {
  const view = new View(() => bar.draw(store));
  const bar = new TimeBar(view, options);
  bar.draw(store);
  return { view, bar };
}

function slide(bar, step) {
  bar.slider.value = step;
  fire(bar.slider, "input");
}

test("dragging goes to any step, and the end of the slider is live", () => {
  const store = storeWith(count(0, 31));
  const { view, bar } = showing(store);
  assert.deepEqual([bar.slider.min, bar.slider.max, bar.slider.value], ["0", "30", "30"]);
  assert.equal(bar.text.textContent, "step 30");
  slide(bar, 12);
  assert.equal(view.at, 12);
  assert.equal(bar.text.textContent, "step 12 of 30");
  assert.equal(bar.slider.getAttribute("aria-valuetext"), "step 12 of 30");
  give(store, [31, 32]);
  bar.draw(store);
  assert.deepEqual([view.at, bar.text.textContent], [12, "step 12 of 32"]);
  slide(bar, 32);
  assert.deepEqual([view.at, bar.text.textContent], [null, "step 32"]);
  assert.equal(bar.slider.getAttribute("aria-valuetext"), "live, the newest step");
});

test("arrows go one step, and other keys are the slider's own", () => {
  const { view, bar } = showing(storeWith(count(0, 31)));
  for (const [key, at] of [["ArrowLeft", 29], ["ArrowDown", 28], ["ArrowRight", 29], ["ArrowUp", null]]) {
    assert.ok(press(bar.slider, key).defaultPrevented, key);
    assert.equal(view.at, at, key);
  }
  press(bar.slider, "ArrowRight");
  assert.equal(view.at, null, "there is nothing newer");
  for (const key of ["Home", "End", " ", "a"]) assert.ok(!press(bar.slider, key).defaultPrevented, key);
  assert.equal(view.at, null);
});

test("buttons go one step, and rest where there is none", () => {
  const { view, bar } = showing(storeWith([0, 1, 2]));
  assert.deepEqual([bar.back.disabled, bar.forward.disabled], [false, true]);
  click(bar.back);
  click(bar.back);
  assert.equal(view.at, 0);
  assert.deepEqual([bar.back.disabled, bar.forward.disabled], [true, false]);
  click(bar.back);
  assert.equal(view.at, 0);
  click(bar.forward);
  assert.equal(view.at, 1);
  click(bar.forward);
  assert.equal(view.at, null);
});

test("a moment survives thinning, and arrows reach every kept step", () => {
  const store = new Store(1, 16);
  giveRun(store, count(1, 3000));
  const { view, bar } = showing(store);
  view.set({ at: 1001 });
  assert.equal(bar.text.textContent, "step 1001 of 2999");
  assert.equal(bar.slider.min, "1");
  giveRun(store, count(3000, 9000));
  bar.draw(store);
  const kept = column(store, "step");
  const nearest = kept.reduce((best, step) => (Math.abs(step - 1001) < Math.abs(best - 1001) ? step : best));
  assert.notEqual(nearest, 1001, "it was thinned away");
  assert.equal(bar.text.textContent, `step ${nearest} of 8999`);
  const place = kept.indexOf(nearest);
  for (const [key, by] of [["ArrowRight", 1], ["ArrowRight", 2], ["ArrowLeft", 1]]) {
    press(bar.slider, key);
    assert.equal(view.at, kept[place + by]);
  }
  slide(bar, kept[0]);
  for (const step of kept.slice(1, -1)) {
    press(bar.slider, "ArrowRight");
    assert.equal(view.at, step);
  }
});

test("while a finger holds the thumb the scale stands still", () => {
  for (const released of ["pointerup", "pointercancel", "change", "blur"]) {
    const store = storeWith(count(0, 31));
    const { bar } = showing(store);
    fire(bar.slider, "pointerdown");
    give(store, [31, 32]);
    bar.draw(store);
    assert.equal(bar.slider.max, "30");
    fire(bar.slider, released);
    bar.draw(store);
    assert.equal(bar.slider.max, "32", released);
  }
});

test("the live button says whether it is live, and ends the past and a pause", () => {
  const { view, bar } = showing(storeWith(count(0, 31)));
  const pressed = () => bar.live.getAttribute("aria-pressed");
  assert.equal(pressed(), "true");
  view.set({ at: 7 });
  assert.equal(pressed(), "false");
  assert.ok(bar.root.classList.contains("past"));
  click(bar.live);
  assert.deepEqual([view.at, pressed()], [null, "true"]);
  view.set({ until: 20 });
  assert.deepEqual([pressed(), bar.slider.max, bar.text.textContent], ["false", "20", "step 20"]);
  click(bar.live);
  assert.deepEqual([view.until, bar.slider.max], [null, "30"]);
});

test("a branch is asked for at the step shown, from a past one alone", () => {
  const asked = [];
  const store = storeWith([0, 8, 20, 21]);
  const { view, bar } = showing(store, { branch: (step) => asked.push(step) });
  assert.ok(bar.branch.hidden);
  view.set({ at: 10 });
  assert.ok(!bar.branch.hidden);
  click(bar.branch);
  assert.deepEqual(asked, [8]);
  bar.draw(store, { branchable: false });
  assert.ok(bar.branch.hidden);
  const { view: other, bar: plain } = showing(store);
  other.set({ at: 8 });
  assert.ok(plain.branch.hidden, "where nobody offers it");
});

test("before there are steps the bar rests", () => {
  const { view, bar } = showing(storeWith([]));
  assert.deepEqual([bar.slider.disabled, bar.back.disabled, bar.forward.disabled], [true, true, true]);
  assert.equal(bar.text.textContent, "");
  press(bar.slider, "ArrowLeft");
  click(bar.back);
  assert.equal(view.at, null);
  assert.ok(showing(storeWith([0])).bar.slider.disabled, "one step is no choice");
});
