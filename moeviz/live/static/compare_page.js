// The frame of the page that compares: a column for each twin, row by row, and a grid of charts that all share.

import { el, setHidden, setText } from "./dom.js";
import { Info } from "./info.js";
import { Menu } from "./menu.js";
import { Page } from "./page.js";
import { TimeBar } from "./time_bar.js";
import { Toolbar } from "./toolbar.js";
import { TwinHead } from "./twin_head.js";
import { letterOf } from "./twin_look.js";

const ALONE = "A is alone. Add a twin: choose one thing to change, and B trains from the same first weights on the same batches.";
const FIGURES = [["loss", "task loss"], ["max_vio", "MaxVio"]];
const LOAD_KEYS = [
  { look: "dashed", text: "balanced" }, { look: "band", text: "fair router" }, { look: "hatch", text: "dropped" },
  { text: "✕ dead" }, { text: "▲ over" },
];
const HEAT_KEYS = [{ text: "0 = dead" }, { look: "low", text: "1 = balanced" }, { look: "high", text: "≥ 4" }];

export class ComparePage {
  // `branch(step)` branches from a past step of the chosen twin, null if that is not offered; `panels()` are all charts.
  constructor(parent, texts, view, { branch, panels }) {
    this.root = el("section", { class: "moeviz compare", "aria-label": "Twins side by side" });
    this.info = new Info(this.root);
    this.texts = texts;
    this.view = view;
    this.toolbar = new Toolbar(view, new Menu(view, panels, "loss and MaxVio"));
    this.time = new TimeBar(view, { branch });
    this.catchingUp = el("progress", { hidden: "" });
    this.toolbar.root.insertBefore(this.catchingUp, this.toolbar.badge);
    this.heads = el("div", { class: "twins" });
    this.bars = el("div", { class: "twins" });
    this.heats = el("div", { class: "twins" });
    this.loadTitle = el("h4", {}, texts.load.title);
    const rows = el("div", { class: "rows" }, this.heads, this.#rowTitle("load", LOAD_KEYS, this.loadTitle), this.bars);
    rows.append(this.#rowTitle("history", HEAT_KEYS, el("h4", {}, texts.history.title)), this.heats);
    this.hatch = rows.querySelector('.row-title [data-look="hatch"]');
    this.alone = el("p", { class: "alone", hidden: "" }, ALONE);
    this.lanes = el("div", { class: "lanes" }, rows, this.alone);
    this.grid = el("div", { class: "grid" });
    const top = el("div", { class: "top" }, this.toolbar.root, this.time.root);
    this.root.append(top, this.lanes, this.grid);
    // A key for one of our own controls must not also run, pause or step the training, as shortcuts of the page do.
    this.root.addEventListener("keydown", (event) => {
      if (event.target.closest("button, select, input") && event.key !== "Tab") event.stopPropagation();
    });
    parent.append(this.root);
  }

  // One title and one key for the charts of a row.
  #rowTitle(id, keys, title) {
    const text = this.texts[id];
    const key = el("div", { class: "key" });
    this.fillKey({ key }, keys);
    return el("header", { class: "row-title" }, title, this.info.button(text), key);
  }

  // The place of one shared chart, as on the other page.
  card(id) {
    return Page.prototype.card.call(this, id);
  }

  fillKey(card, entries) {
    Page.prototype.fillKey.call(this, card, entries);
  }

  // The places of a new twin: its heading, and two small charts.
  column(lane, choose) {
    const head = new TwinHead(lane, choose);
    this.heads.append(head.root);
    return { head, bars: this.#small(this.bars, lane, "load"), heat: this.#small(this.heats, lane, "history") };
  }

  #small(row, lane, id) {
    const text = { ...this.texts[id], title: `${this.texts[id].title}, twin ${lane.name}` };
    const plot = el("div", { class: "plot", role: "img", "aria-label": `${text.title}. No data yet.` });
    const root = el("div", { class: "small", "data-look": letterOf(lane), "data-chart": id, "data-twin": String(lane.id) }, plot);
    row.append(root);
    // Title and key are the row's: what a chart writes into its own nobody sees.
    const own = { title: el("h4"), unit: el("span"), key: el("div", {}, el("span", { "data-look": "hatch" })) };
    return { ...own, id: `${id}-${lane.name}`, twin: lane.name, text, plot, root, hidden: new Set() };
  }

  putLast({ head, bars, heat }) {
    this.heads.append(head.root);
    this.bars.append(bars.root);
    this.heats.append(heat.root);
  }

  remove({ head, bars, heat }) {
    for (const node of [head.root, bars.root, heat.root]) node.remove();
  }

  // The menu that says which figure's difference is drawn.
  offerFigures(card) {
    const select = el("select", { "aria-label": "Figure" });
    select.append(...FIGURES.map(([value, text]) => el("option", { value }, text)));
    select.addEventListener("change", () => this.view.set({ figure: select.value }));
    card.key.prepend(select);
  }

  // The time bar, and what else says which moment is shown.
  drawTime(lanes) {
    const { view } = this;
    const chosen = lanes.byId(view.twin);
    this.time.draw(lanes.face, { branchable: Boolean(chosen) && view.index(chosen.store) >= 0 });
    setText(this.time.branch, `Branch from ${chosen?.name ?? "A"} here`);
    const step = lanes.face.count ? lanes.face.step[view.index(lanes.face)] : 0;
    const past = view.at !== null || view.until !== null;
    setText(this.loadTitle, past ? `Expert load at step ${step}` : this.texts.load.title);
  }

  draw(lanes, { catching_up: catchingUp }) {
    const count = lanes.all.length;
    this.lanes.style.setProperty("--twins", String(Math.max(count, 1)));
    this.lanes.dataset.count = String(count);
    setHidden(this.alone, count !== 1);
    setHidden(this.hatch, !lanes.all.some(({ store }) => (store.knobs?.token_dropping ?? "none") !== "none"));
    setHidden(this.catchingUp, !catchingUp);
    if (!catchingUp) return;
    Object.assign(this.catchingUp, { max: Math.max(catchingUp.to, 1), value: catchingUp.step });
    const words = `Training the new twin up to step ${catchingUp.to}: at ${catchingUp.step}`;
    this.catchingUp.title = words;
    this.catchingUp.setAttribute("aria-label", words);
    setText(this.catchingUp, words);
  }
}
