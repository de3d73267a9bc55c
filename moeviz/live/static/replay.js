// The entry of a replay: a recording in the page itself takes the place of the server, a player that of the training.

import { biasChart } from "./bias_chart.js";
import { el, setHidden, setText } from "./dom.js";
import { droppedChart } from "./dropped_chart.js";
import { historyChart } from "./history_chart.js";
import { LoadChart } from "./load_chart.js";
import { lossChart } from "./loss_chart.js";
import { maxVioChart } from "./max_vio_chart.js";
import { Page } from "./page.js";
import { Player } from "./player.js";
import { StepChart } from "./step_chart.js";
import { Store } from "./store.js";
import { readTheme } from "./theme.js";
import { View } from "./view.js";
import { decode } from "./wire.js";

const TOO_OLD = "This browser is too old for a replay. Open it with Chrome 80, Firefox 113, Safari 16.4 or a newer one.";
const BROKEN = "This replay cannot be read: the file is damaged. Save it again.";
const SPEAK_MS = 2000; // charts in words: current, but calm

class Replay {
  constructor(place, told) {
    this.told = told;
    this.view = new View(() => this.changed());
    this.frame = new Page(place, told.texts, this.view);
    this.player = new Player(this.view, this.frame.time);
    this.about = new About(told, (run) => this.#choose(run));
    this.frame.root.prepend(this.about.root, this.player.root);
    // Identities are checked while training, and not recorded; and nothing here is live.
    const { truth, time, toolbar } = this.frame;
    for (const node of [truth.root, time.live, toolbar.menu.pause.closest("label")]) setHidden(node, true);
    this.drawn = 0;
    this.#keepZoomBox();
  }

  // While the mouse button is down Plotly is drawing a zoom box, which a redraw would tear away.
  #keepZoomBox() {
    this.frame.grid.addEventListener("pointerdown", () => (this.held = true), true);
    for (const type of ["pointerup", "pointercancel"]) {
      window.addEventListener(type, () => {
        this.held = false;
        this.changed();
      });
    }
  }

  async begin() {
    this.runs = await Promise.all(this.told.runs.map(read));
    this.shared = { Plotly: null, view: this.view, changed: () => this.changed() };
    const kinds = [historyChart(), biasChart(), maxVioChart(), lossChart(), droppedChart()];
    this.panels = [new LoadChart(this.frame.card("load"), this.shared)];
    for (const kind of kinds) this.panels.push(new StepChart(this.frame.card(kind.id), this.shared, kind));
    for (const panel of this.panels) this.frame.fillKey(panel.card, panel.kind.keys);
    this.frame.panels = this.panels;
    setInterval(() => this.panels.forEach((panel) => panel.speak()), SPEAK_MS);
    this.#choose(0);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#wear());
    this.#wear();
    if (document.readyState !== "complete") await new Promise((done) => window.addEventListener("load", done));
    if (!window.Plotly) throw new Error(BROKEN);
    this.shared.Plotly = window.Plotly;
    await this.#dress();
  }

  #choose(number) {
    this.run = this.runs[number];
    if (this.view.expert >= this.run.store.experts) this.view.expert = -1;
    Object.assign(this.view, { hover: null, zoom: null });
    this.player.follow(this.run.store);
  }

  #wear() {
    const { root } = this.frame;
    this.theme = readTheme(root);
    root.dataset.theme = this.theme.dark ? "dark" : "light";
    for (const panel of this.panels) panel.wear(this.theme);
    this.#draw();
    if (this.shared.Plotly) this.#dress();
  }

  async #dress() {
    for (const panel of this.panels) await panel.dress();
    this.changed();
  }

  // Draws at the next frame, once however often it is asked.
  changed() {
    this.drawing ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    if (this.drawing) cancelAnimationFrame(this.drawing);
    this.drawing = 0;
    if (!this.theme) return;
    const { store } = this.run;
    this.player.draw();
    this.frame.strip.draw(store, this.view, {});
    this.frame.toolbar.draw(store, { notice: "", badge: "", serious: false });
    this.frame.time.draw(store, { branchable: false });
    this.about.draw(this.run, store.knobsAt(this.view.index(store)));
    if (!this.held) for (const panel of this.panels) panel.draw(store);
    for (const panel of this.panels) panel.showCursor();
    this.drawn += 1;
    this.#publish();
  }

  fail(error) {
    this.frame.toolbar.draw(new Store(1, 2), { notice: error.message, badge: "", serious: true });
  }

  // For browser tests: what a person would see, as values.
  #publish() {
    const { store } = this.run;
    window.__moeviz = {
      step: this.view.at,
      playing: this.player.playing,
      drawn: this.drawn,
      complete: this.panels.every((panel) => panel.dressed),
      loads: this.panels[0].now?.loads ?? [],
      marks: store.marks.map((mark) => ({ step: mark.step, label: store.markText(mark) })),
      store,
      view: this.view,
    };
  }
}

// Title, date, how much was kept, settings and receipt, and where there are several runs, which one is shown.
class About {
  constructor({ title, date, receipt, runs, defaults }, chosen) {
    this.told = { date, runs, defaults };
    const options = runs.map(({ name, note }, i) => el("option", { value: String(i) }, note ? `${name}: ${note}` : name));
    const select = el("select", { "aria-label": "Run" }, ...options);
    select.addEventListener("change", () => chosen(Number(select.value)));
    const menu = el("label", { class: "runs" }, "Run ", select);
    setHidden(menu, runs.length < 2);
    this.kept = el("span", { class: "kept" });
    this.settings = el("div", { class: "settings" });
    const more = [this.settings];
    if (receipt) more.push(el("h2", {}, "Receipt"), el("pre", { class: "receipt" }, receipt));
    this.details = el("details", {}, el("summary", {}, "Settings"), ...more);
    this.details.addEventListener("toggle", () => this.run && this.draw(this.run, this.knobs));
    this.root = el("header", { class: "about" }, el("h1", {}, title), this.kept, menu, this.details);
  }

  draw(run, knobs) {
    Object.assign(this, { run, knobs });
    const { date } = this.told;
    setText(this.kept, [date, run.kept].filter(Boolean).join(" · "));
    if (!this.details.open) return;
    const { recipe } = run.store;
    const shown = JSON.stringify([recipe, knobs]);
    if (shown === this.shown) return;
    this.shown = shown;
    this.settings.replaceChildren(
      ...this.#list("Recipe", recipe, this.told.defaults.recipe),
      ...this.#list("Knobs at this step", knobs, this.told.defaults.knobs),
    );
  }

  // What is not as usual stands out.
  #list(title, values, usual) {
    if (!values) return [el("h2", {}, title), el("p", {}, "Not known any more.")];
    const pairs = Object.entries(values).map(([name, value]) =>
      el("div", value === usual[name] ? {} : { class: "changed" }, el("dt", {}, name), el("dd", {}, String(value))),
    );
    return [el("h2", {}, title), el("dl", {}, ...pairs)];
  }
}

// One run of the recording: its store, its knobs at each entry, and how much of it was kept.
async function read({ message }) {
  if (typeof DecompressionStream === "undefined") throw new Error(TOO_OLD);
  const { header, columns } = await inflate(message).then(decode, () => {
    throw new Error(BROKEN);
  });
  const store = new Store(header.layers, header.experts);
  store.capacity = header.n; // all that was kept; the server's side has thinned it already
  columns.steps_per_second = Float32Array.from(header.speeds, (speed) => speed ?? NaN);
  Object.assign(store, { recipe: header.recipe, knobs: header.knobs });
  for (const [version, label] of header.marks) store.labels.set(version, label);
  store.append(header, columns);
  for (const [version, knobs] of Object.entries(header.versions)) store.knobsOf.set(Number(version), knobs);
  return { store, kept: keptOf(store) };
}

function keptOf(store) {
  const first = store.step[0];
  const steps = store.lastStep - first + 1;
  const all = `steps ${first} to ${store.lastStep}`;
  return store.count < steps ? `${all}: ${store.count} of ${steps} are kept, older ones thinned, extremes among them` : all;
}

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

const recorded = JSON.parse(document.getElementById("recorded").textContent);
const replay = new Replay(document.getElementById("replay"), recorded);
replay.begin().catch((error) => replay.fail(error));
