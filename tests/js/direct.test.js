// Does a slider turn its knob at once, end at the last value, and leave alone what the page's script is about to bring?

import assert from "node:assert/strict";
import test, { afterEach, beforeEach } from "node:test";

import { element, fire, ownClock, page, pass, press, settled } from "./page.js";

import { Direct } from "../../moeviz/live/static/direct.js";

ownClock();

const VALUES = { u: [0.001, 0.003, 0.01, 0.03, 0.1], top_k: [1, 2, 4] };
let direct, written, script, sliders, answer;

beforeEach(() => {
  written = [];
  answer = async () => true;
  script = element("div", { "data-test-script-state": "notRunning" });
  sliders = {};
  page.replaceChildren(script);
  for (const [name, values] of Object.entries(VALUES)) {
    const slider = element("input", { type: "range", min: 0, max: values.length - 1, value: 1 });
    sliders[name] = slider;
    page.append(element("div", { class: `st-key-${name}` }, slider));
  }
  direct = new Direct({
    values: () => VALUES,
    write: (knobs) => {
      written.push(knobs);
      return answer();
    },
  });
  return pass(600);
});
afterEach(() => direct.dispose());

// A key, which the page's own slider follows after us.
async function key(name, which) {
  const slider = sliders[name];
  press(slider, which);
  const now = Number(slider.value);
  slider.value = { ArrowLeft: now - 1, ArrowDown: now - 1, Home: 0, End: slider.max }[which] ?? now + 1;
  await settled();
}

test("a key turns the knob at once, to where the key takes the slider", async () => {
  const moves = [
    ["ArrowRight", 0.01], ["ArrowUp", 0.03], ["ArrowLeft", 0.01], ["ArrowDown", 0.003], ["End", 0.1], ["Home", 0.001],
  ];
  for (const [which, value] of moves) {
    await key("u", which);
    assert.deepEqual(written.at(-1), { u: value }, which);
    await pass(600);
  }
  await key("top_k", "ArrowRight");
  assert.deepEqual(written.at(-1), { top_k: 4 });
});

test("a key that moves nothing writes nothing", async () => {
  await key("u", "Home");
  await pass(600);
  await key("u", "ArrowLeft");
  press(sliders.u, "a");
  assert.equal(written.length, 1);
});

test("of quick keys the first is written, the later ones are left to the script, so that none comes back", async () => {
  await key("u", "ArrowRight");
  for (let k = 0; k < 3; k++) {
    await pass(100);
    await key("u", "ArrowRight");
  }
  assert.deepEqual(written, [{ u: 0.01 }]);
  await pass(400);
  await key("u", "ArrowLeft");
  assert.deepEqual(written, [{ u: 0.01 }], "the rest begins with the last key");
  await pass(600);
  await key("u", "ArrowLeft");
  assert.deepEqual(written, [{ u: 0.01 }, { u: 0.01 }]);
});

test("a move is left to the script while that runs, or was told of anything else just now", async () => {
  script.dataset.testScriptState = "running";
  await key("u", "ArrowRight");
  script.dataset.testScriptState = "notRunning";
  await pass(600);
  direct.hush();
  await key("u", "ArrowRight");
  await pass(600);
  fire(script, "pointerup");
  await key("u", "ArrowLeft");
  await pass(600);
  press(script, "x");
  await key("u", "ArrowLeft");
  assert.deepEqual(written, []);
});

test("a move is left to the script while an earlier one is on its way, and for a page without a script", async () => {
  let arrive;
  answer = () => new Promise((resolve) => (arrive = resolve));
  await key("u", "ArrowRight");
  await pass(2000);
  await key("u", "ArrowRight");
  assert.equal(written.length, 1);
  arrive(true);
  await pass(600);
  await key("u", "ArrowLeft");
  assert.equal(written.length, 2);
  arrive(true);
  await pass(600);
  page.replaceChildren(...page.children.slice(1));
  await key("u", "ArrowLeft");
  assert.equal(written.length, 2);
});

test("after a write that failed the next move is written as well", async () => {
  answer = async () => false;
  await key("u", "ArrowRight");
  await pass(600);
  await key("u", "ArrowRight");
  assert.deepEqual(written, [{ u: 0.01 }, { u: 0.03 }]);
});

// A drag from the first place to another.
async function drag(slider, to, released = "pointerup") {
  fire(slider, "pointerdown");
  slider.value = to;
  await pass(300);
  fire(slider, released);
  await settled();
}

test("a drag is written once, when the slider is let go", async () => {
  const { u } = sliders;
  await drag(u, 4);
  assert.deepEqual(written, [{ u: 0.1 }]);
  await pass(600);
  await drag(u, 0, "pointercancel");
  assert.deepEqual(written, [{ u: 0.1 }, { u: 0.001 }]);
  await pass(600);
  await drag(u, 0);
  assert.equal(written.length, 2, "back where it was");
  await pass(600);
  fire(script, "pointerdown");
  fire(script, "pointerup");
  assert.equal(written.length, 2, "of a drag elsewhere nothing is known");
});

test("a drag that begins while the script may be on its way is left to it", async () => {
  await key("u", "ArrowRight");
  await pass(100);
  await drag(sliders.u, 4);
  assert.equal(written.length, 1);
});

test("a slider that is disabled, or is none of ours, writes nothing", async () => {
  sliders.u.disabled = true;
  await key("u", "ArrowRight");
  await pass(600);
  const other = element("input", { type: "range", value: 1 });
  page.append(other);
  press(other, "ArrowRight");
  press(element("div", { class: "st-key-u" }, element("input", { type: "text" })), "ArrowRight");
  assert.deepEqual(written, []);
});

test("a slider shorter than its values ends at its own end", async () => {
  sliders.u.max = 2;
  await key("u", "End");
  await pass(600);
  await key("u", "ArrowRight");
  assert.deepEqual(written, [{ u: 0.01 }]);
});
