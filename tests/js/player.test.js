// Does a replay play at the speed it says, pause, end and begin again, and go where keys send it?

import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { click, element, fire, frame, leave, press } from "./page.js";

import { Player } from "../../moeviz/live/static/player.js";
import { TimeBar } from "../../moeviz/live/static/time_bar.js";
import { View } from "../../moeviz/live/static/view.js";
import { count, storeWith } from "./stores.js";

const FRAME_MS = 1000 / 60;
let now = 0;

afterEach(leave);

// A replay's view, time bar and player, drawn again after every change as the page does.
function replaying(store = storeWith(count(0, 151))) {
  const view = new View(() => {
    if (!player?.store) return;
    player.draw();
    bar.draw(player.store, { branchable: false });
  });
  const bar = new TimeBar(view);
  let player = new Player(view, bar);
  player.follow(store);
  return { view, bar, player };
}

function play(ms, frameMs = FRAME_MS) {
  for (const end = now + ms; now < end; ) frame((now += Math.min(frameMs, end - now)));
}

const words = ({ button }) => button.lastChild.textContent;

test("a replay begins at its first step, and rests", () => {
  const { view, player } = replaying(storeWith([4, 5, 6]));
  play(2000);
  assert.deepEqual([view.at, player.playing, words(player)], [4, false, "Play"]);
});

for (const [i, rate] of [10, 40, 160].entries()) {
  test(`at speed ${i} it makes ${rate} steps a second, whatever the screen's rate`, () => {
    for (const frameMs of [FRAME_MS, 1000 / 144, 100]) {
      const { view, player } = replaying(storeWith(count(0, 2001)));
      click(player.speeds[i]);
      assert.equal(player.speeds[i].getAttribute("aria-pressed"), "true");
      assert.match(player.speeds[i].title, new RegExp(`^${rate} steps per second`));
      click(player.button);
      frame((now += frameMs)); // from here on time counts
      play(5000, frameMs);
      assert.ok(Math.abs(view.at - 5 * rate) <= 1, `${view.at} with a frame every ${frameMs} ms`);
      leave();
    }
  });
}

test("the speed is in steps, also where some are missing", () => {
  const { view, player } = replaying(storeWith([0, 10, 20, 90, 95, 200]));
  click(player.button);
  frame(now);
  const seen = Array.from({ length: 14 }, () => {
    play(700); // seven steps
    return view.at;
  });
  assert.deepEqual(seen, [0, 10, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 90, 95]);
});

test("it pauses where it is and goes on from there", () => {
  const { view, player } = replaying();
  click(player.button);
  assert.deepEqual([player.playing, words(player)], [true, "Pause"]);
  play(1000);
  click(player.button);
  const at = view.at;
  assert.ok(at >= 9 && !player.playing && words(player) === "Play");
  play(3000);
  assert.equal(view.at, at, "no frame moves it");
  click(player.button);
  play(1000);
  assert.ok(view.at >= at + 9 && view.at <= at + 11);
});

test("it ends at the last step, and begins again from there", () => {
  const { view, player } = replaying();
  click(player.button);
  for (let k = 0; k < 2000 && view.at < 150; k++) play(FRAME_MS);
  assert.deepEqual([view.at, player.playing, words(player)], [150, false, "Play"]);
  click(player.button);
  assert.deepEqual([view.at, player.playing], [0, true]);
  play(1000);
  assert.ok(view.at > 0 && view.at < 30);
});

test("a tab that was hidden goes on where it was", () => {
  const { view, player } = replaying();
  click(player.button);
  play(1000);
  const at = view.at;
  frame((now += 60_000));
  assert.ok(view.at <= at + 6);
});

test("the end of the slider is a step like any other", () => {
  const { view, bar } = replaying();
  bar.slider.value = 150;
  fire(bar.slider, "input");
  assert.deepEqual([view.at, bar.text.textContent], [150, "step 150 of 150"]);
});

test("who moves the slider while it plays is followed", () => {
  const { view, bar, player } = replaying();
  click(player.button);
  play(500);
  bar.slider.value = 100;
  fire(bar.slider, "input");
  play(500);
  assert.ok(player.playing && view.at >= 103 && view.at <= 106, `${view.at}`);
});

test("keys go by one, by ten with Shift, to both ends, and play", () => {
  const { view, player } = replaying();
  const body = element("body");
  const moves = [
    ["End", 150], ["ArrowLeft", 149], ["ArrowLeft", 139, true], ["ArrowRight", 140], ["ArrowRight", 150, true],
    ["Home", 0], ["ArrowLeft", 0], ["ArrowRight", 1], ["ArrowRight", 11, true],
  ];
  for (const [key, at, shiftKey = false] of moves) {
    assert.ok(press(body, key, { shiftKey }).defaultPrevented);
    assert.equal(view.at, at, key);
  }
  press(body, " ");
  play(500);
  assert.ok(player.playing && view.at > 11);
  press(body, " ");
  assert.ok(!player.playing);
});

test("arrows go from one kept step to the next", () => {
  const { view } = replaying(storeWith([0, 10, 20, 90, 91]));
  for (const at of [10, 20, 90, 91, 91]) {
    press(element("body"), "ArrowRight");
    assert.equal(view.at, at);
  }
});

test("other controls keep the keys that they need, the slider's arrows are the player's", () => {
  const { view, bar, player } = replaying();
  const [select, area] = [element("select"), element("textarea")];
  const [box, other] = [element("input", { type: "checkbox" }), element("input", { type: "range" })];
  for (const control of [select, area, box]) for (const key of ["ArrowRight", " ", "End"]) press(control, key);
  press(other, "ArrowRight");
  for (const tag of ["button", "summary", "a"]) press(element(tag), " ");
  press(element("body"), "x");
  for (const held of ["ctrlKey", "altKey", "metaKey"]) press(element("body"), "ArrowRight", { [held]: true });
  assert.deepEqual([view.at, player.playing], [0, false]);
  press(bar.slider, "ArrowRight");
  assert.equal(view.at, 1, "once, not by the player and the slider");
  press(bar.slider, "ArrowRight", { shiftKey: true });
  assert.equal(view.at, 11);
  press(element("button"), "ArrowRight");
  assert.equal(view.at, 12);
  press(other, " ");
  assert.ok(player.playing);
  press(other, " ");
});

test("another recording is shown at the same step, or at its last one", () => {
  const { view, player } = replaying();
  view.set({ at: 120 });
  player.follow(storeWith(count(0, 131)));
  assert.equal(view.at, 120);
  player.follow(storeWith(count(0, 80)));
  assert.equal(view.at, 79);
});
