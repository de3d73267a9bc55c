// The entry of the page that compares: one `Compare` per mounted component joins transport, twins, view and charts.

import { Agreement } from "./agree.js";
import { ComparePage } from "./compare_page.js";
import { Direct } from "./direct.js";
import { Lanes } from "./lanes.js";
import { loadPlotly } from "./plotly.js";
import { freeKeysAfterPointer } from "./presenter.js";
import { Puller } from "./pull.js";
import { readTheme } from "./theme.js";
import { CommonScale, TwinBars } from "./twin_bars.js";
import { TwinChart } from "./twin_chart.js";
import { TwinHeat } from "./twin_heat.js";
import { twinKinds } from "./twin_lines.js";
import { TwinsView } from "./twins_view.js";
import { loadStyles, nameInAddress, rememberVisit } from "./page_parts.js";

const RELEASED = "This run was released because nobody was watching it.";
const SPEAK_MS = 2000; // charts in words: current, but calm

const instances = new Map();

// Streamlit calls this again whenever the data or the theme changes.
export function render(component) {
  const { parentElement } = component;
  freeKeysAfterPointer();
  if (!instances.has(parentElement)) instances.set(parentElement, new Compare(component));
  instances.get(parentElement).update(component);
}

export function release(parentElement) {
  instances.get(parentElement)?.dispose();
  instances.delete(parentElement);
}

class Compare {
  constructor({ parentElement, data }) {
    this.view = new TwinsView(() => this.changed(), () => this.lanes.face);
    const branch = data.branch ? (step) => this.#branch(step) : null;
    this.frame = new ComparePage(parentElement, data.charts, this.view, { branch, panels: () => this.panels });
    this.shared = { Plotly: null, view: this.view, changed: () => this.changed() };
    this.scale = new CommonScale();
    this.columns = new Map(); // by twin: {head, bars, heat, panels}
    this.charts = [];
    this.trouble = this.failure = "";
    this.drawn = this.drawMs = 0;
    this.pulling = new Puller({
      address: () => this.#address(),
      receive: (buffer) => this.#receive(buffer),
      trouble: (text, error) => this.#troubled(text, error),
      gone: (text) => this.#gone(text),
      alive: () => this.frame.root.isConnected,
    });
    this.agreement = new Agreement((change) => this.#tell(change));
    this.direct = new Direct({ values: () => this.component.data.direct ?? {}, write: (knobs) => this.#write(knobs) });
    this.#watchPresses();
    this.speaking = setInterval(() => this.panels.forEach((panel) => panel.speak()), SPEAK_MS);
    this.ready = this.#begin(data);
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

  // Styles, then the shared charts; columns come with their twins.
  async #begin({ base, version }) {
    await loadStyles(this.frame.root, ["style.css", "compare.css"].map((name) => `${base}/${name}?v=${version}`));
    for (const kind of twinKinds(() => this.lanes, this.view)) {
      const card = this.frame.card(kind.id);
      this.frame.fillKey(card, kind.keys);
      if (kind.id === "difference") this.frame.offerFigures(card);
      this.charts.push(new TwinChart(card, this.shared, kind));
    }
  }

  get panels() {
    return [...this.charts, ...[...this.columns.values()].flatMap(({ panels }) => panels)];
  }

  async update(component) {
    this.component = component;
    try {
      if (component.data.token !== this.token) this.#follow(component.data.token);
      const change = rememberVisit(component.data);
      if (change) this.#tell(change);
      this.pulling.start();
      await this.ready;
      this.#wear();
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

  // Go on from a past step of the chosen twin as another one: that is for Python to do.
  #branch(step) {
    this.direct.hush();
    this.component.setTriggerValue("branch", { step, twin: this.view.twin });
  }

  // Another run: forget everything about the last one.
  #follow(token) {
    this.token = token;
    this.lanes = new Lanes();
    this.header = { epoch: -1, status: "starting", message: "", playing: false, version: -1 };
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

  // The axes of the shared charts; Plotly.js keeps the browser busy for a second, after the first picture.
  async #dress() {
    const { base, version } = this.component.data;
    this.shared.Plotly = await loadPlotly(`${base}/../plotly.min.js?v=${version}`);
    if (this.dressedAs === this.wornAs || !this.frame.root.isConnected) return;
    this.dressedAs = this.wornAs;
    for (const chart of this.charts) await chart.dress();
    this.changed();
  }

  #address() {
    const base = new URL(`${this.component.data.base}/../run/${this.token}/twins`, location.href);
    base.search = new URLSearchParams({ known: JSON.stringify(this.lanes.known()) });
    return base;
  }

  async #receive(buffer) {
    nameInAddress(this.token); // again and again: Streamlit writes addresses of its own
    await this.ready; // a chart made before the styles would have the wrong size
    const { lanes } = this;
    const before = lanes.epoch;
    const { header, rows } = lanes.take(buffer);
    this.header = header;
    if (before !== header.epoch) this.view.begin();
    this.#matchColumns();
    this.agreement.check(this.component.data.known, header);
    this.#drawNow();
    const { playing, status, catching_up: catchingUp } = header;
    return { drawMs: this.drawMs, busy: playing || rows > 0 || status === "starting" || Boolean(catchingUp) };
  }

  // A column for each twin that is there, and none for one that is gone. In another beginning all are made anew.
  #matchColumns() {
    let added = false;
    for (const [id, column] of this.columns) {
      if (this.lanes.byId(id)?.store !== column.store) this.#dropColumn(id);
    }
    for (const lane of this.lanes.all) {
      if (this.columns.has(lane.id)) continue;
      this.#addColumn(lane);
      added = true;
    }
    if (added) for (const { id } of this.lanes.all) this.frame.putLast(this.columns.get(id));
    if (!this.lanes.byId(this.view.twin)) this.view.twin = this.lanes.base?.id ?? 0;
  }

  #addColumn(lane) {
    const column = this.frame.column(lane, (twin) => this.#choose(twin));
    const panels = [
      new TwinBars(column.bars, this.shared, this.scale), new TwinHeat(column.heat, this.shared),
    ];
    if (this.theme) for (const panel of panels) panel.wear(this.theme);
    this.columns.set(lane.id, { ...column, panels, store: lane.store });
  }

  #dropColumn(id) {
    const column = this.columns.get(id);
    for (const panel of column.panels) panel.dispose();
    this.frame.remove(column);
    this.columns.delete(id);
  }

  #choose(twin) {
    this.view.set({ twin });
  }

  // Turns knobs of the run itself; whether that succeeded. If not, the page's script brings them all the same.
  async #write(knobs) {
    const address = new URL(`${this.component.data.base}/../run/${this.token}/knobs`, location.href);
    const { epoch, version } = this.header;
    const body = JSON.stringify({ epoch, version, after: this.lanes.face.lastStep, knobs });
    const headers = { "Content-Type": "application/json" };
    try {
      const answer = await fetch(address, { method: "POST", headers, body, cache: "no-store" });
      this.pulling.wake(); // the twins' own answer has it all
      return answer.status === 200;
    } catch (error) {
      this.lastError = String(error);
      return false;
    }
  }

  #troubled(text, error) {
    if (error) this.lastError = String(error);
    if (this.trouble === text) return;
    this.trouble = text;
    this.changed();
  }

  #gone(text) {
    this.trouble = text || RELEASED;
    this.header = { ...this.header, status: "released", playing: false, message: this.trouble };
    this.agreement.check(this.component.data.known, this.header);
    this.changed();
  }

  #fail(error) {
    this.lastError = String(error);
    this.failure = `The charts could not be drawn. ${error.message}`;
    this.frame.toolbar.draw(this.lanes.face, this.#messages());
    this.#publish();
  }

  // Draws at the next frame, once however often it is asked.
  changed() {
    this.drawing ||= requestAnimationFrame(() => this.#drawNow());
  }

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
    if (!this.theme || !this.lanes) return;
    const began = performance.now();
    const { lanes, view, frame } = this;
    frame.draw(lanes, this.header);
    frame.toolbar.draw(lanes.face, this.#messages());
    frame.drawTime(lanes);
    this.#drawHeads();
    // While the mouse button is down Plotly is drawing a zoom box, which a redraw would tear away.
    const count = this.held ? 0 : this.#drawCharts();
    for (const panel of this.panels) panel.showCursor();
    if (count) {
      this.drawn += 1;
      this.drawMs = performance.now() - began;
    }
    this.#publish();
  }

  #drawHeads() {
    const nameOf = (id) => this.lanes.byId(id)?.name ?? "a twin that is gone";
    for (const lane of this.lanes.all) {
      const { head, bars, heat } = this.columns.get(lane.id);
      head.draw(lane, this.view.index(lane.store), this.view, nameOf);
      for (const { root } of [bars, heat]) root.classList.toggle("still", Boolean(lane.said.diverged));
    }
  }

  #drawCharts() {
    const { lanes, view } = this;
    // What the charts cannot see by themselves: who is chosen, and which figure.
    const seen = `${view.twin} ${view.figure}`;
    if (seen !== this.seenBefore) for (const chart of this.charts) chart.drawnAs = "";
    this.seenBefore = seen;
    const rescaled = this.scale.over(Math.max(...lanes.all.map(({ store }) => highestLoad(store, view))));
    let count = 0;
    for (const chart of this.charts) count += chart.draw(lanes.face);
    for (const { id, store, bare } of lanes.all) {
      const [bars, heat] = this.columns.get(id).panels;
      if (rescaled) bars.drawnAs = "";
      count += bars.draw(store) + heat.draw(bare);
    }
    return count;
  }

  #messages() {
    const { status, message } = this.header;
    const lost = status === "failed" || status === "lost";
    const waiting = status === "starting" || status === "waiting" ? message || "The run is starting." : "";
    const stopped = lost ? message || "This run has stopped." : "";
    const notice = this.failure || this.trouble || stopped || waiting || this.header.notice || "";
    return { notice, badge: "", serious: Boolean(this.failure || this.trouble || lost) };
  }

  // For browser tests: what a person would see, as values.
  #publish() {
    const { lanes, header } = this;
    window.__moeviz = {
      token: this.token,
      step: lanes.face.lastStep,
      epoch: header.epoch,
      playing: header.playing,
      status: header.status,
      drawn: this.drawn,
      drawMs: this.drawMs,
      complete: this.charts.length > 0 && this.charts.every((chart) => chart.dressed),
      twins: lanes.all,
      marks: lanes.face.marks,
      lastError: this.lastError ?? "",
      scale: this.scale.range,
      charts: this.charts,
      columns: this.columns,
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

// The highest bar, or end of the fair band, that a twin's chart shows.
function highestLoad(store, view) {
  const index = view.index(store);
  if (index < 0) return 0;
  const layer = Math.min(view.layer, store.layers - 1);
  const start = store.row(index, layer);
  const mean = store.mean_load[index * store.layers + layer];
  let highest = mean * (1 + (store.fair_max_vio_p95[index] || 0));
  for (let e = 0; e < store.experts; e++) highest = Math.max(highest, store.load[start + e]);
  return highest;
}
