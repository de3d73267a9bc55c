// What does a page of charts say is wrong, and what becomes of a write that fails?

import assert from "node:assert/strict";
import test from "node:test";

import "./page.js";

import { ChartsPage } from "../../moeviz/live/static/charts_page.js";

const HEADER = { status: "ready", message: "", notice: "", playing: true, epoch: 1 };

function charts(header = {}) {
  const told = [];
  const page = Object.assign(new ChartsPage(), { header: { ...HEADER, ...header }, trouble: "", failure: "", told });
  page.component = { data: { known: { status: "ready" }, base: "/moeviz/live" } };
  page.agreement = { check: (known, state) => told.push({ ...state }) };
  page.changed = () => told.push("drawn again");
  return page;
}

const CALM = { badge: "", serious: false };

test("where nothing is wrong the badge stands alone", () => {
  assert.deepEqual(charts().messages("recorded"), { notice: "", badge: "recorded", serious: false });
});

test("what the server has to say is said calmly", () => {
  const said = [
    [{ notice: "It went on from step 120." }, "It went on from step 120."],
    [{ status: "waiting", message: "2 runs are ahead of yours.", notice: "It went on." }, "2 runs are ahead of yours."],
    [{ status: "starting", message: "" }, "The run is starting."],
  ];
  for (const [header, notice] of said) assert.deepEqual(charts(header).messages("recorded"), { notice, ...CALM });
});

test("a start that nobody waits for leaves the badge its place", () => {
  const page = charts({ status: "starting", playing: false });
  assert.deepEqual(page.messages("recorded"), { notice: "", badge: "recorded", serious: false });
  assert.equal(page.messages().notice, "The run is starting.");
});

test("a run that has stopped, a server that is silent and charts that cannot be drawn are serious", () => {
  for (const status of ["failed", "lost"]) {
    assert.deepEqual(charts({ status, message: "Out of memory." }).messages("b"), {
      notice: "Out of memory.", badge: "", serious: true,
    });
    assert.equal(charts({ status }).messages().notice, "This run has stopped.");
  }
  const page = charts({ notice: "It went on." });
  page.troubled("The server does not answer; trying again.", new Error("why"));
  assert.deepEqual(page.messages(), { notice: "The server does not answer; trying again.", badge: "", serious: true });
  assert.equal(page.lastError, "Error: why");
  page.failure = "The charts could not be drawn.";
  assert.equal(page.messages().notice, "The charts could not be drawn.");
  page.failure = "";
  page.troubled("");
  assert.deepEqual(page.messages(), { notice: "It went on.", ...CALM });
});

test("trouble is drawn once, not at every question", () => {
  const page = charts();
  for (let k = 0; k < 3; k++) page.troubled("Silence.");
  assert.deepEqual(page.told, ["drawn again"]);
});

test("a run that is gone says why, and the page's script is told", () => {
  const page = charts();
  page.gone("Not for you.");
  assert.equal(page.messages().notice, "Not for you.");
  const [state, drawn] = page.told;
  assert.deepEqual(state, { ...HEADER, status: "released", playing: false, message: "Not for you." });
  assert.equal(drawn, "drawn again");
  page.gone("");
  assert.match(page.messages().notice, /released because nobody was watching/);
});

test("knobs are written to the run with what is known of it; nothing comes back where that is lost", async () => {
  globalThis.location = { href: "http://here/" };
  const asked = [];
  globalThis.fetch = async (address, given) => (asked.push([String(address), given]), { status: 409 });
  const page = Object.assign(charts(), { token: "abc" });
  assert.deepEqual(await page.postKnobs({ epoch: 1, after: 7 }, { u: 0.1 }), { status: 409 });
  const [[address, { method, body }]] = asked;
  assert.equal(address, "http://here/moeviz/run/abc/knobs");
  assert.equal(method, "POST");
  assert.deepEqual(JSON.parse(body), { epoch: 1, after: 7, knobs: { u: 0.1 } });
  globalThis.fetch = async () => Promise.reject(new TypeError("lost"));
  assert.equal(await page.postKnobs({}, {}), null);
  assert.equal(page.lastError, "TypeError: lost");
});
