// The entry: one `Live` per mounted component joins transport, store, view and charts.

import { Agreement } from "./agree.js";
import { biasChart } from "./bias_chart.js";
import { Direct } from "./direct.js";
import { droppedChart } from "./dropped_chart.js";
import { historyChart } from "./history_chart.js";
import { LoadChart } from "./load_chart.js";
import { lossChart } from "./loss_chart.js";
import { maxVioChart } from "./max_vio_chart.js";
import { Page } from "./page.js";
import { loadStyles, nameInAddress, rememberVisit } from "./page_parts.js";
import { loadPlotly } from "./plotly.js";
import { freeKeysAfterPointer } from "./presenter.js";
import { Puller } from "./pull.js";
import { StepChart } from "./step_chart.js";
import { Store } from "./store.js";
import { readTheme } from "./theme.js";
import { View } from "./view.js";
import { decode } from "./wire.js";

const RECORDED = "Recorded start of the preset “No balancing”: press Run to train your own";
const RELEASED = "This run was released because nobody was watching it.";

const SPEAK_MS = 2000; // charts in words: current, but calm
const HIDDEN_MS = 300; // longer than a frame
const NUMBERS_MS = 5000; // age of the identities' numbers that nobody reads

const instances = new Map();
const firstEpochs = new Map(); // by token; outlives a visit to another page

// Streamlit calls this again whenever the data or the theme changes.
export function render(component) {
  const { parentElement } = component;
  freeKeysAfterPointer();
  if (!instances.has(parentElement)) instances.set(parentElement, new Live(component));
  instances.get(parentElement).update(component);
}

export function release(parentElement) {
  instances.get(parentElement)?.dispose();
  instances.delete(parentElement);
}

class Live {
  constructor({ parentElement, data }) {
    this.view = new View(() => this.changed());
    const branch = data.branch ? (step) => this.#branch(step) : null;
    this.frame = new Page(parentElement, data.charts, this.view, branch);
    this.panels = [];
    this.trouble = "";
    this.failure = "";
    this.drawn = 0;
    this.drawMs = 0;
    this.pulling = new Puller({
      address: () => this.#address(),
      receive: (buffer) => this.#receive(buffer),
      trouble: (text, error) => this.#troubled(text, error),
      gone: (text) => this.#gone(text),
      alive: () => this.frame.root.isConnected,
    });
    this.agreement = new Agreement((change) => this.#tell(change));
    this.direct = new Direct({
      values: () => this.component.data.direct ?? {},
      write: (knobs) => this.#write(knobs),
    });
    this.frame.truth.opened = () => this.pulling.wake();
    this.writes = 0;
    this.onPress = () => (this.held = true);
    this.onRelease = () => {
      this.held = false;
      this.changed();
    };
    this.frame.grid.addEventListener("pointerdown", this.onPress, true);
    for (const type of ["pointerup", "pointercancel"]) window.addEventListener(type, this.onRelease);
    this.speaking = setInterval(() => this.panels.forEach((panel) => panel.speak()), SPEAK_MS);
    this.ready = this.#begin(data);
    this.answered = new Promise((resolve) => (this.heard = resolve));
  }

  // Styles, then the panels.
  async #begin({ base, version }) {
    await loadStyles(this.frame.root, [`${base}/style.css?v=${version}`]);
    this.shared = { Plotly: null, view: this.view, changed: () => this.changed() };
    const kinds = [historyChart(), biasChart(), maxVioChart(), lossChart(), droppedChart()];
    this.panels = [new LoadChart(this.frame.card("load"), this.shared)];
    for (const kind of kinds) this.panels.push(new StepChart(this.frame.card(kind.id), this.shared, kind));
    for (const panel of this.panels) this.frame.fillKey(panel.card, panel.kind.keys);
    this.frame.panels = this.panels;
  }

  // Data, styles and Plotly.js are all on their way at once; the first two make a picture, the last its axes.
  async update(component) {
    this.component = component;
    try {
      if (component.data.token !== this.token) this.#follow(component.data.token);
      const change = rememberVisit(component.data);
      if (change) this.#tell(change);
      this.pulling.start();
      const recording = this.#fetchRecording();
      await this.ready;
      this.#wear();
      await recording;
      this.#drawNow();
      await this.#dress();
    } catch (error) {
      this.#fail(error);
    }
  }

  #tell(change) {
    this.direct.hush();
    this.component.setTriggerValue("changed", change);
  }

  // Go on from a past step as another twin: that is for Python to do.
  #branch(step) {
    this.direct.hush();
    this.component.setTriggerValue("branch", { step, twin: 0 });
  }

  // Another run: forget everything about the last one.
  #follow(token) {
    this.token = token;
    this.store = new Store(1, 16);
    this.header = { epoch: -1, status: "starting", message: "", playing: false, version: -1 };
    this.truth = null; // {serial, told, identities, measured: serial of the numbers, at: when they came}
    this.recording = null;
    this.asked = null; // the recording, while it is on its way and after
    this.pulling.stop();
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

  // The axes. Plotly.js keeps the browser busy for a second, which is spent after the first picture.
  async #dress() {
    const { base, version } = this.component.data;
    if (!this.shared.Plotly) await this.#firstPicture();
    this.shared.Plotly = await loadPlotly(`${base}/../plotly.min.js?v=${version}`);
    if (this.dressedAs === this.wornAs || !this.frame.root.isConnected) return;
    this.dressedAs = this.wornAs;
    for (const panel of this.panels) await panel.dress();
    this.changed();
  }

  // Resolves once something has been drawn and is on the screen, or the run's first answer brought nothing to draw.
  async #firstPicture() {
    if (!this.shown.count) await this.answered;
    await new Promise((resolve) => {
      requestAnimationFrame(() => setTimeout(resolve));
      setTimeout(resolve, HIDDEN_MS); // a hidden tab draws no frames
    });
  }

  #address() {
    const base = new URL(`${this.component.data.base}/../run/${this.token}`, location.href);
    base.search = new URLSearchParams(this.#known());
    this.writesBefore = this.writes;
    return base;
  }

  // What the server need not send again.
  #known() {
    const { epoch, version } = this.header;
    return { epoch, version, after: this.store.lastStep, ...this.#knownTruth() };
  }

  // Numbers change at every check; they travel when somebody reads them, and otherwise now and then.
  #knownTruth() {
    if (!this.truth) return {};
    const { serial, told, measured, at } = this.truth;
    const wanted = measured < serial && (this.frame.truth.read || performance.now() - at > NUMBERS_MS);
    return { told, truth: wanted ? measured : serial, numbers: Number(wanted) };
  }

  async #receive(buffer) {
    nameInAddress(this.token); // again and again: Streamlit writes addresses of its own
    // A slider was written meanwhile, and that answer was newer.
    if (this.writesBefore === this.writes) await this.#show(buffer);
    this.heard();
    const { n, playing, status } = this.header;
    return { drawMs: this.drawMs, busy: playing || n > 0 || status === "starting" };
  }

  async #show(buffer) {
    const { header, columns } = decode(buffer);
    this.#takeIn(header, columns);
    this.agreement.check(this.component.data.known, header);
    await this.#fetchRecording();
    this.#drawNow();
  }

  // Turns knobs of the run itself; whether that succeeded. If not, the page's script brings them all the same.
  async #write(knobs) {
    const { token } = this;
    const address = new URL(`${this.component.data.base}/../run/${token}/knobs`, location.href);
    const body = JSON.stringify({ ...this.#known(), knobs });
    const headers = { "Content-Type": "application/json" };
    try {
      const answer = await fetch(address, { method: "POST", headers, body, cache: "no-store" });
      const buffer = answer.status === 200 && (await answer.arrayBuffer());
      if (!buffer || token !== this.token) return false;
      this.writes += 1;
      await this.#show(buffer);
      return true;
    } catch (error) {
      this.lastError = String(error);
      return false;
    }
  }

  #takeIn(header, columns) {
    const { layers, experts } = this.store;
    if (header.epoch !== this.header.epoch || header.layers !== layers || header.experts !== experts) {
      const { labels } = this.store;
      this.store = new Store(header.layers, header.experts);
      this.store.labels = labels;
      this.view.hover = null;
      this.view.zoom = null;
      if (this.view.expert >= header.experts) this.view.expert = -1;
    }
    if (header.epoch !== this.header.epoch) this.truth = null;
    if (header.knobs) this.store.knobsOf.set(header.version, header.knobs);
    if (header.truth) this.#takeTruth(header.truth);
    if (!firstEpochs.has(this.token)) firstEpochs.set(this.token, header.epoch);
    this.header = header;
    this.store.recipe = header.recipe ?? this.store.recipe;
    this.store.knobs = header.knobs ?? this.store.knobs;
    for (const [version, label] of header.marks) this.store.labels.set(version, label);
    this.store.append(header, columns);
  }

  #takeTruth({ serial, told, identities, numbers }) {
    const fresh = identities || numbers ? { measured: serial, at: performance.now() } : {};
    if (identities) this.truth = { told, identities };
    else if (numbers) this.truth.identities = this.truth.identities.map((one, i) => ({ ...one, numbers: numbers[i] }));
    this.truth = { ...this.truth, ...fresh, serial };
  }

  // Before the first answer, a run whose worker is still getting ready for its first beginning.
  get untrained() {
    if (this.header.epoch < 0) return this.component.data.fresh;
    return this.header.epoch === firstEpochs.get(this.token) && this.store.lastStep <= 0;
  }

  // The recorded start fills the charts until a run of one's own has something to show.
  async #fetchRecording() {
    const { data } = this.component;
    if (this.untrained && data.recorded) this.asked ??= this.#takeRecording(data, this.token).catch(() => {});
    await this.asked;
  }

  async #takeRecording(data, token) {
    const answer = await fetch(`${data.base}/start.bin?v=${data.version}`);
    if (!answer.ok) return;
    const { header, columns } = decode(await answer.arrayBuffer());
    const recording = new Store(header.layers, header.experts);
    Object.assign(recording, { recipe: header.recipe ?? null, knobs: header.knobs ?? null });
    for (const [version, label] of header.marks ?? []) recording.labels.set(version, label);
    recording.append(header, columns);
    if (token === this.token) this.recording = recording;
  }

  get shown() {
    return this.recording && this.untrained ? this.recording : this.store;
  }

  #troubled(text, error) {
    if (text) this.heard();
    if (error) this.lastError = String(error);
    if (this.trouble === text) return;
    this.trouble = text;
    this.changed();
  }

  #gone(text) {
    this.heard();
    this.trouble = text || RELEASED;
    this.header = { ...this.header, status: "released", playing: false, message: this.trouble };
    this.agreement.check(this.component.data.known, this.header);
    this.changed();
  }

  #fail(error) {
    this.lastError = String(error);
    this.failure = `The charts could not be drawn. ${error.message}`;
    this.frame.toolbar.draw(this.store, this.#messages());
    this.#publish();
  }

  // Draws at the next frame, once however often it is asked.
  changed() {
    this.drawing ||= requestAnimationFrame(() => this.#drawNow());
  }

  // Draws what has come: waiting for a frame would only make it older.
  #drawNow() {
    if (this.drawing) cancelAnimationFrame(this.drawing);
    this.drawing = 0;
    try {
      this.#draw();
    } catch (error) {
      this.#fail(error);
    }
  }

  #draw() {
    if (!this.theme || !this.store) return;
    const began = performance.now();
    const store = this.shown;
    if (store.serial !== this.serial) this.view.goLive(); // another run, or this one from its beginning
    this.serial = store.serial;
    const own = store !== this.recording;
    this.frame.strip.draw(store, this.view, this.#state());
    this.frame.truth.draw(own ? (this.truth?.identities ?? null) : null, this.view.at !== null || this.view.until !== null);
    this.frame.toolbar.draw(store, this.#messages());
    this.frame.time.draw(store, { branchable: own });
    // While the mouse button is down Plotly is drawing a zoom box, which a redraw would tear away.
    let count = 0;
    if (!this.held) for (const panel of this.panels) count += panel.draw(store);
    for (const panel of this.panels) panel.showCursor();
    if (count) {
      this.drawn += 1;
      this.drawMs = performance.now() - began;
    }
    this.#publish();
  }

  #state() {
    const { playing } = this.header;
    if (this.shown === this.recording) return { playing: true, word: "recorded" };
    return { playing, word: playing ? "training" : this.store.lastStep > 0 ? "paused" : "untrained" };
  }

  #messages() {
    const { status, message } = this.header;
    const lost = status === "failed" || status === "lost";
    const waiting = status === "starting" || status === "waiting" ? message || "The run is starting." : "";
    const stopped = lost ? message || "This run has stopped." : "";
    const notice = this.failure || this.trouble || stopped || waiting || this.header.notice || "";
    const badge = !notice && this.shown === this.recording ? RECORDED : "";
    return { notice, badge, serious: Boolean(this.failure || this.trouble || lost) };
  }

  // For browser tests: what a person would see, as values.
  #publish() {
    const { store } = this;
    window.__moeviz = {
      token: this.token,
      step: store.lastStep,
      epoch: this.header.epoch,
      playing: this.header.playing,
      status: this.header.status,
      recorded: this.shown === this.recording,
      drawn: this.drawn,
      drawMs: this.drawMs,
      complete: this.panels.length > 0 && this.panels.every((panel) => panel.dressed),
      bars: this.panels[0]?.now?.kept ?? [],
      marks: store.marks.map((mark) => ({ step: mark.step, label: store.markText(mark) })),
      truth: this.truth,
      writes: this.writes,
      lastError: this.lastError ?? "",
      store,
      view: this.view,
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
