// The Playground's charts: one run, its numbers and what must hold of it; before it has steps, a recorded start.

import { biasChart } from "./bias_chart.js";
import { ChartsPage } from "./charts_page.js";
import { droppedChart } from "./dropped_chart.js";
import { historyChart } from "./history_chart.js";
import { LoadChart } from "./load_chart.js";
import { lossChart } from "./loss_chart.js";
import { maxVioChart } from "./max_vio_chart.js";
import { Page } from "./page.js";
import { loadStyles, mounting, nameInAddress } from "./page_parts.js";
import { StepChart } from "./step_chart.js";
import { Store } from "./store.js";
import { View } from "./view.js";
import { decode } from "./wire.js";

const RECORDED = "Recorded start of the preset “No balancing”: press Run to train your own";
const HIDDEN_MS = 300; // longer than a frame
const NUMBERS_MS = 5000; // age of the identities' numbers that nobody reads

const firstEpochs = new Map(); // by token; outlives a visit to another page

class Live extends ChartsPage {
  constructor({ parentElement, data }) {
    super();
    this.view = new View(() => this.changed());
    this.frame = new Page(parentElement, data.charts, this.view, data.branch ? (step) => this.branch(step) : null);
    this.panels = [];
    this.twin = 0;
    this.writes = 0;
    this.answered = new Promise((resolve) => (this.heard = resolve));
    this.connect(data);
    this.frame.truth.opened = () => this.pulling.wake();
  }

  get withAxes() {
    return this.panels;
  }

  get face() {
    return this.store;
  }

  // Styles, then the panels.
  async begin({ base, version }) {
    await loadStyles(this.frame.root, [`${base}/style.css?v=${version}`]);
    const kinds = [historyChart(), biasChart(), maxVioChart(), lossChart(), droppedChart()];
    this.panels = [new LoadChart(this.frame.card("load"), this.shared)];
    for (const kind of kinds) this.panels.push(new StepChart(this.frame.card(kind.id), this.shared, kind));
    for (const panel of this.panels) this.frame.fillKey(panel.card, panel.kind.keys);
    this.frame.panels = this.panels;
  }

  follow(token) {
    super.follow(token);
    this.store = new Store(1, 16);
    this.truth = null; // {serial, told, identities, measured: serial of the numbers, at: when they came}
    this.recording = null;
    this.asked = null; // the recording, while it is on its way and after
  }

  // Resolves once something has been drawn and is on the screen, or the run's first answer brought nothing to draw.
  async firstPicture() {
    if (!this.shown.count) await this.answered;
    await new Promise((resolve) => {
      requestAnimationFrame(() => setTimeout(resolve));
      setTimeout(resolve, HIDDEN_MS); // a hidden tab draws no frames
    });
  }

  address() {
    const address = this.addressOf();
    address.search = new URLSearchParams(this.#known());
    this.writesBefore = this.writes;
    return address;
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

  async receive(buffer) {
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
    await this.fetchMore();
    this.drawNow();
  }

  // Turns knobs of the run itself; whether that succeeded.
  async write(knobs) {
    const { token } = this;
    const answer = await this.postKnobs(this.#known(), knobs);
    try {
      const buffer = answer?.status === 200 && (await answer.arrayBuffer());
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
  async fetchMore() {
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

  troubled(text, error) {
    if (text) this.heard();
    super.troubled(text, error);
  }

  gone(text) {
    this.heard();
    super.gone(text);
  }

  paint() {
    const store = this.shown;
    if (store.serial !== this.serial) this.view.goLive(); // another run, or this one from its beginning
    this.serial = store.serial;
    const own = store !== this.recording;
    this.frame.strip.draw(store, this.view, this.#state());
    this.frame.truth.draw(own ? (this.truth?.identities ?? null) : null, this.view.at !== null || this.view.until !== null);
    this.frame.toolbar.draw(store, this.messages(own ? "" : RECORDED));
    this.frame.time.draw(store, { branchable: own });
    // While the mouse button is down Plotly is drawing a zoom box, which a redraw would tear away.
    let count = 0;
    if (!this.held) for (const panel of this.panels) count += panel.draw(store);
    return count;
  }

  #state() {
    const { playing } = this.header;
    if (this.shown === this.recording) return { playing: true, word: "recorded" };
    return { playing, word: playing ? "training" : this.store.lastStep > 0 ? "paused" : "untrained" };
  }

  seen() {
    const { store, truth, writes } = this;
    return {
      store, truth, writes,
      recorded: this.shown === this.recording,
      bars: this.panels[0]?.now?.kept ?? [],
      marks: store.marks.map((mark) => ({ step: mark.step, label: store.markText(mark) })),
    };
  }
}

const page = mounting(Live);
export const render = page.render;
export const release = page.release;
