// What every page of live charts does: pulls what is new, draws it when there is somebody to see it, agrees with the
// page's script on how the run is, and says what is wrong.
//
// A page fills in: `view`, `frame` and `panels`; `withAxes`, those of them that Plotly.js dresses; `face`, the store
// whose steps are everybody's; `twin` to branch from; begin(data), address(), receive(buffer), write(knobs), paint(),
// which draws and counts the panels it drew; seen(), what a browser test may look at.

import { Agreement } from "./agree.js";
import { Direct } from "./direct.js";
import { rememberVisit } from "./page_parts.js";
import { loadPlotly } from "./plotly.js";
import { freeKeysAfterPointer } from "./presenter.js";
import { Puller } from "./pull.js";
import { readTheme } from "./theme.js";

const RELEASED = "This run was released because nobody was watching it.";
const SPEAK_MS = 2000; // charts in words: current, but calm

export class ChartsPage {
  // To be called when `view` and `frame` are there.
  connect(data) {
    freeKeysAfterPointer();
    this.trouble = this.failure = "";
    this.drawn = this.drawMs = 0;
    this.shared = { Plotly: null, view: this.view, changed: () => this.changed() };
    this.pulling = new Puller({
      address: () => this.address(),
      receive: (buffer) => this.receive(buffer),
      trouble: (text, error) => this.troubled(text, error),
      gone: (text) => this.gone(text),
      alive: () => this.frame.root.isConnected,
    });
    this.agreement = new Agreement((change) => this.tell(change));
    this.direct = new Direct({ values: () => this.component.data.direct ?? {}, write: (knobs) => this.write(knobs) });
    this.#watchPresses();
    this.speaking = setInterval(() => this.panels.forEach((panel) => panel.speak()), SPEAK_MS);
    this.ready = this.begin(data);
  }

  #watchPresses() {
    this.onPress = () => (this.held = true);
    this.onRelease = () => {
      this.held = false;
      this.changed();
    };
    this.frame.grid.addEventListener("pointerdown", this.onPress, true);
    for (const type of ["pointerup", "pointercancel"]) window.addEventListener(type, this.onRelease);
  }

  // Data, styles and Plotly.js are all on their way at once; the first two make a picture, the last its axes.
  async update(component) {
    this.component = component;
    try {
      if (component.data.token !== this.token) this.follow(component.data.token);
      const change = rememberVisit(component.data);
      if (change) this.tell(change);
      this.pulling.start();
      const more = this.fetchMore();
      await this.ready;
      this.#wear();
      await more;
      this.drawNow();
      await this.#dress();
    } catch (error) {
      this.fail(error);
    }
  }

  // Another run: forget everything about the last one.
  follow(token) {
    this.token = token;
    this.header = { epoch: -1, status: "starting", message: "", playing: false, version: -1 };
    this.pulling.stop();
  }

  // What a page shows beside the run, and what it waits for before Plotly.js keeps the browser busy for a second.
  async fetchMore() {}
  async firstPicture() {}

  tell(change) {
    this.direct.hush();
    this.component.setTriggerValue("changed", change);
  }

  // Go on from a past step as another twin: that is for Python to do.
  branch(step) {
    this.direct.hush();
    this.component.setTriggerValue("branch", { step, twin: this.twin });
  }

  #wear() {
    const { root } = this.frame;
    this.theme = readTheme(root);
    root.dataset.theme = this.theme.dark ? "dark" : "light";
    const same = JSON.stringify(this.theme);
    if (this.wornAs === same) return;
    this.wornAs = same;
    for (const panel of this.panels) panel.wear(this.theme);
  }

  // The axes.
  async #dress() {
    const { base, version } = this.component.data;
    if (!this.shared.Plotly) await this.firstPicture();
    this.shared.Plotly = await loadPlotly(`${base}/../plotly.min.js?v=${version}`);
    if (this.dressedAs === this.wornAs || !this.frame.root.isConnected) return;
    this.dressedAs = this.wornAs;
    for (const panel of this.withAxes) await panel.dress();
    this.changed();
  }

  // Where the run is, or something that belongs to it.
  addressOf(part = "") {
    return new URL(`${this.component.data.base}/../run/${this.token}${part}`, location.href);
  }

  // Turns knobs of the run itself, for whoever has what is `known`. Nothing where that did not reach the server: the
  // page's script brings them all the same.
  async postKnobs(known, knobs) {
    const headers = { "Content-Type": "application/json" };
    const body = JSON.stringify({ ...known, knobs });
    try {
      return await fetch(this.addressOf("/knobs"), { method: "POST", headers, body, cache: "no-store" });
    } catch (error) {
      this.lastError = String(error);
      return null;
    }
  }

  troubled(text, error) {
    if (error) this.lastError = String(error);
    if (this.trouble === text) return;
    this.trouble = text;
    this.changed();
  }

  gone(text) {
    this.trouble = text || RELEASED;
    this.header = { ...this.header, status: "released", playing: false, message: this.trouble };
    this.agreement.check(this.component.data.known, this.header);
    this.changed();
  }

  fail(error) {
    this.lastError = String(error);
    this.failure = `The charts could not be drawn. ${error.message}`;
    this.frame.toolbar.draw(this.face, this.messages());
    this.#publish();
  }

  // Draws at the next frame, once however often it is asked.
  changed() {
    this.drawing ||= requestAnimationFrame(() => this.drawNow());
  }

  // Draws what has come: waiting for a frame would only make it older.
  drawNow() {
    if (this.drawing) cancelAnimationFrame(this.drawing);
    this.drawing = 0;
    try {
      this.#draw();
    } catch (error) {
      this.fail(error);
    }
  }

  #draw() {
    if (!this.theme || !this.face) return;
    const began = performance.now();
    const count = this.paint();
    for (const panel of this.panels) panel.showCursor();
    if (count) {
      this.drawn += 1;
      this.drawMs = performance.now() - began;
    }
    this.#publish();
  }

  // What the toolbar says; `badge` where nothing else must be.
  messages(badge = "") {
    const { status, message, playing } = this.header;
    const lost = status === "failed" || status === "lost";
    // What the charts show meanwhile matters more than a start that nobody waits for.
    const starting = status === "starting" && (playing || !badge);
    const waiting = starting || status === "waiting" ? message || "The run is starting." : "";
    const stopped = lost ? message || "This run has stopped." : "";
    const notice = this.failure || this.trouble || stopped || waiting || this.header.notice || "";
    return { notice, badge: notice ? "" : badge, serious: Boolean(this.failure || this.trouble || lost) };
  }

  // For browser tests: what a person would see, as values.
  #publish() {
    const { header, token, drawn, drawMs, view } = this;
    window.__moeviz = {
      token, drawn, drawMs, view,
      step: this.face.lastStep,
      epoch: header.epoch,
      playing: header.playing,
      status: header.status,
      complete: this.withAxes.length > 0 && this.withAxes.every((panel) => panel.dressed),
      agreed: !this.agreement.since,
      here: () => this.frame.root.isConnected,
      lastError: this.lastError ?? "",
      ...this.seen(),
    };
  }

  dispose() {
    this.pulling.dispose();
    this.direct.dispose();
    clearInterval(this.speaking);
    for (const type of ["pointerup", "pointercancel"]) window.removeEventListener(type, this.onRelease);
    for (const panel of this.panels) panel.dispose();
    this.frame.root.remove();
  }
}
