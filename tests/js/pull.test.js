// How often does the browser ask, when does it wait, and what does it say when nobody answers?

import assert from "node:assert/strict";
import test, { afterEach } from "node:test";

import { ownClock, pass } from "./page.js";

import { Puller } from "../../moeviz/live/static/pull.js";

ownClock();

let puller = null;
afterEach(() => puller.dispose());

// A puller whose server, drawing and page a test decides on. `asked` are the times of its questions, `heard` is what it
// said. Taking an answer in may need longer than the drawing of it.
function pulling({ answer = async () => ok(), drawMs = 0, takesMs = drawMs, busy = true } = {}) {
  const now = { answer, drawMs, takesMs, busy, alive: true, asked: [], drawn: 0, heard: [] };
  globalThis.fetch = async (_, { signal }) => {
    now.asked.push(performance.now());
    return now.answer(signal);
  };
  puller = new Puller({
    address: () => "somewhere",
    receive: async () => {
      now.drawn += 1;
      if (now.takesMs) await new Promise((resolve) => setTimeout(resolve, now.takesMs));
      return { drawMs: now.drawMs, busy: now.busy };
    },
    trouble: (text) => now.heard.push(text),
    gone: (text) => now.heard.push(`gone: ${text}`),
    alive: () => now.alive,
  });
  return now;
}

const ok = () => ({ ok: true, status: 200, arrayBuffer: async () => new ArrayBuffer(8) });
const refusal = (status, said) => ({ ...ok(), ok: false, status, json: async () => said });

// Nobody answers; the question can be given up.
const silence = (signal) => new Promise((_, fail) => {
  signal.addEventListener("abort", () => fail(signal.reason));
});

const pauses = ({ asked }) => asked.slice(1).map((at, i) => at - asked[i]);

// The first question has no beat yet, the second one follows at once.
const beats = (now) => pauses(now).slice(2);

async function watched(now, ms) {
  puller.start();
  await pass(ms);
  return now;
}

for (const [busy, least] of [[true, 95], [false, 400]]) {
  test(`a run that ${busy ? "trains is asked for ten times a second" : "rests, less often"}`, async () => {
    const now = await watched(pulling({ busy }), 4000);
    for (const pause of beats(now)) assert.ok(pause >= least && pause <= least + 5, `${pause} ms`);
    assert.ok(now.asked.length >= 4000 / (least + 5));
  });
}

for (const [takesMs, drawMs, least] of [[400, 400, 800], [0, 400, 800], [500, 100, 600]]) {
  test(`drawing for ${drawMs} of ${takesMs} ms lowers the rate, so that the browser rests as long`, async () => {
    const now = await watched(pulling({ takesMs, drawMs }), 8000);
    assert.ok(now.asked.length > 8);
    for (const pause of beats(now)) assert.ok(pause >= least && pause <= least + 10, `${pause} ms`);
  });
}

test("who presses Run is answered at once, and ten times a second from then on", async () => {
  const now = await watched(pulling({ busy: false }), 1100);
  const before = now.asked.length;
  now.busy = true;
  puller.start();
  await pass(300);
  assert.ok(now.asked.length >= before + 3);
  for (const pause of pauses(now).slice(before)) assert.ok(pause <= 100, `${pause} ms`);
});

test("a beat is kept: what one answer takes longer, the next pause is shorter", async () => {
  const now = pulling();
  now.answer = async () => {
    await new Promise((resolve) => setTimeout(resolve, 40));
    return ok();
  };
  await watched(now, 3000);
  for (const pause of beats(now)) assert.ok(pause >= 95 && pause <= 100, `${pause} ms`);
});

test("nothing is asked before the last answer is drawn", async () => {
  const now = pulling({ drawMs: 3000 });
  puller.start();
  await pass(2000);
  puller.start();
  puller.wake();
  await pass(900);
  assert.equal(now.asked.length, 1);
});

test("a hidden tab asks for nothing and catches up when it is seen", async () => {
  const now = pulling();
  puller.start();
  await pass(500);
  document.hidden = true;
  await pass(200);
  const before = now.asked.length;
  await pass(30_000);
  assert.equal(now.asked.length, before);
  document.hidden = false;
  document.dispatchEvent(new Event("visibilitychange"));
  await pass(5);
  assert.equal(now.asked.length, before + 1, "at once");
});

test("silence is said after ten seconds and forgotten with the next answer", async () => {
  const now = pulling({ answer: silence });
  puller.start();
  await pass(9900);
  assert.deepEqual(now.heard, []);
  await pass(200);
  assert.deepEqual(now.heard, ["The server does not answer; trying again."]);
  now.answer = async () => ok();
  await pass(1000);
  assert.equal(now.heard.at(-1), "");
});

test("who is not answered asks less and less often, and every tenth of a second again after an answer", async () => {
  const now = pulling({ answer: async () => Promise.reject(new TypeError("no network")) });
  puller.start();
  await pass(30_000);
  const rounded = pauses(now).map((pause) => 100 * Math.round(pause / 100));
  assert.deepEqual(rounded.slice(0, 6), [500, 1000, 2000, 4000, 5000, 5000]);
  now.answer = async () => ok();
  await pass(6000);
  assert.ok(pauses(now).at(-1) <= 100);
  now.answer = async () => refusal(500);
  await pass(900);
  assert.equal(now.heard.at(-1), "The server does not answer; trying again.");
  assert.equal(100 * Math.round(pauses(now).at(-1) / 100), 500, "from the beginning");
});

for (const status of [403, 404]) {
  test(`a run that is refused with ${status} says so in the server's words and may come back`, async () => {
    const now = pulling({ answer: async () => refusal(status, { error: "Not for you." }) });
    puller.start();
    await pass(800);
    assert.deepEqual(now.heard, ["gone: Not for you.", "gone: Not for you."]);
    now.answer = async () => ({ ...refusal(status), json: async () => JSON.parse("no json") });
    await pass(1000);
    assert.equal(now.heard.at(-1), "gone: ", "without words");
    now.answer = async () => ok();
    await pass(4000);
    assert.equal(now.heard.at(-1), "");
  });
}

test("an answer that comes after it was stopped is not drawn, and asking can begin again", async () => {
  const now = pulling();
  let late;
  now.answer = () => new Promise((resolve) => (late = resolve));
  puller.start();
  await pass(100);
  puller.stop();
  late(ok());
  await pass(500);
  assert.deepEqual([now.drawn, now.asked.length, now.heard.length], [0, 1, 0]);
  now.answer = async () => ok();
  puller.start();
  await pass(300);
  assert.ok(now.drawn >= 3);
  assert.ok(now.asked.length <= 6, "one loop alone");
  let given;
  now.answer = (signal) => silence((given = signal));
  await pass(300);
  puller.stop();
  assert.ok(given.aborted);
  await pass(500);
  assert.ok(!now.heard.some(Boolean), "who has stopped misses no answer");
});

test("asking ends with the page, and begins again with it", async () => {
  const now = pulling();
  puller.start();
  await pass(300);
  now.alive = false;
  const before = now.asked.length;
  await pass(2000);
  assert.ok(now.asked.length <= before + 1);
  now.alive = true;
  puller.start();
  await pass(300);
  assert.ok(now.asked.length > before + 2);
});
