// The frame of the charts: numbers, identities, toolbar, and a grid of cards.

import { el } from "./dom.js";
import { Info } from "./info.js";
import { Menu } from "./menu.js";
import { Strip } from "./strip.js";
import { TimeBar } from "./time_bar.js";
import { Toolbar } from "./toolbar.js";
import { Truth } from "./truth.js";

const IDENTITIES = ["E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8"];

export class Page {
  // `branch(step)` is called to branch from a past step; without it that is not offered.
  constructor(parent, texts, view, branch = null) {
    this.root = el("section", { class: "moeviz", "aria-label": "Live charts of the training" });
    this.info = new Info(this.root);
    this.strip = new Strip(texts.numbers, this.info);
    this.truth = new Truth(IDENTITIES, this.info);
    this.panels = []; // filled by whoever makes the charts
    this.toolbar = new Toolbar(view, new Menu(view, () => this.panels));
    this.time = new TimeBar(view, { branch });
    this.grid = el("div", { class: "grid" });
    this.root.append(this.strip.root, this.truth.root, this.toolbar.root, this.time.root, this.grid);
    // A key for one of our own controls must not also run, pause or step the training, as shortcuts of the page do.
    // Streamlit leaves keys to inputs by itself.
    this.root.addEventListener("keydown", (event) => {
      if (event.target.closest("button, select") && event.key !== "Tab") event.stopPropagation();
    });
    this.texts = texts.charts;
    this.view = view;
    parent.append(this.root);
  }

  // An empty card for one chart; its key follows when the chart says what it has.
  card(id) {
    const text = this.texts[id];
    const key = el("div", { class: "key" });
    const plot = el("div", { class: "plot", role: "img", "aria-label": `${text.title}. No data yet.` });
    const unit = el("span", { class: "unit" }, text.unit);
    const title = el("h4", {}, text.title);
    const head = el("header", {}, title, unit, this.info.button(text));
    this.grid.append(el("article", { class: "card", "data-chart": id }, head, key, plot));
    return { id, text, title, unit, key, plot, hidden: new Set() };
  }

  // The key of a chart. Where an entry has an id its line can be switched off and on.
  fillKey(card, entries) {
    for (const entry of entries) {
      const parts = entry.look ? [el("span", { class: `swatch ${entry.look}`, "aria-hidden": "true" })] : [];
      if (entry.text) parts.push(el("span", { class: "says" }, entry.text));
      const part = entry.id ? this.#toggle(card, entry.id, parts) : el("span", {}, ...parts);
      part.dataset.look = entry.look ?? "";
      card.key.append(part);
    }
  }

  #toggle(card, id, parts) {
    const button = el("button", { type: "button", "aria-pressed": "true" }, ...parts);
    button.addEventListener("click", () => {
      if (!card.hidden.delete(id)) card.hidden.add(id);
      button.setAttribute("aria-pressed", String(!card.hidden.has(id)));
      this.view.changed();
    });
    return button;
  }
}
