// How charts are drawn, and their pictures as files: smoothing, axes, a pause of the drawing, PNG and SVG.

import { el, setHidden, setText } from "./dom.js";
import { placeBeside } from "./info.js";
import { USUAL } from "./smoothing.js";

const MOST = 0.99;

export class Menu {
  // `panels()` are the charts, each of which can be saved once its axes are there.
  // `usual` are those that are smoothed where nobody chose.
  constructor(view, panels, usual = "loss") {
    this.view = view;
    this.usual = usual;
    this.panels = panels;
    this.button = el("button", { type: "button", class: "menu-button", "aria-expanded": "false", "aria-haspopup": "dialog" }, "Charts");
    this.smoothing = this.#smoothing();
    this.logValues = this.#check("Log values", "loss, MaxVio and dropped", "logValues");
    this.logSteps = this.#check("Log steps", "all charts over steps", "logSteps");
    this.pause = el("input", { type: "checkbox" });
    this.pause.addEventListener("change", () => this.#pause(this.pause.checked));
    const pause = el("label", {}, this.pause, el("span", {}, "Pause drawing"), el("small", {}, "training goes on"));
    this.box = el(
      "div", { class: "menu", popover: "auto", role: "dialog", "aria-label": "How charts are drawn" },
      this.smoothing.root, this.logValues.root, this.logSteps.root, pause, this.#files(),
    );
    this.#open();
  }

  #open() {
    this.button.popoverTargetElement = this.box;
    this.box.addEventListener("toggle", ({ newState }) => {
      this.button.setAttribute("aria-expanded", String(newState === "open"));
      if (newState !== "open") return;
      this.#offerFiles();
      placeBeside(this.box, this.button.getBoundingClientRect());
    });
  }

  #smoothing() {
    const slider = el("input", { type: "range", min: "0", max: String(MOST), step: "0.01", "aria-label": "Smoothing" });
    const says = el("output", {});
    const usual = el("button", { type: "button", title: `${this.usual} ${USUAL.toFixed(2)}, the others as they are` }, "Usual");
    slider.addEventListener("input", () => this.view.set({ smoothing: Number(slider.value) }));
    usual.addEventListener("click", () => this.view.set({ smoothing: null }));
    const what = el("small", {}, "loss, MaxVio and dropped; raw stays faint");
    const root = el("div", { class: "smoothing" }, el("span", {}, "Smoothing"), slider, says, usual, what);
    return { root, slider, says, usual };
  }

  #check(text, more, name) {
    const input = el("input", { type: "checkbox" });
    input.addEventListener("change", () => this.view.set({ [name]: input.checked }));
    return { root: el("label", {}, input, el("span", {}, text), el("small", {}, more)), input };
  }

  #files() {
    this.chart = el("select", { "aria-label": "Chart to save" });
    const save = (format) => {
      const button = el("button", { type: "button", "aria-label": `Save as ${format.toUpperCase()}` }, format.toUpperCase());
      button.addEventListener("click", () => this.#save(format));
      return button;
    };
    this.saves = [save("png"), save("svg")];
    this.refusal = el("small", { role: "status" });
    return el("div", { class: "files" }, el("span", {}, "Save"), this.chart, ...this.saves, this.refusal);
  }

  async #save(format) {
    try {
      await this.#chosen().download(format);
      setText(this.refusal, "");
    } catch (error) {
      setText(this.refusal, `Not saved. ${error.message ?? error}`);
    }
  }

  #offerFiles() {
    const panels = this.panels();
    if (this.offered !== panels.map(({ card }) => card.id).join()) {
      this.offered = panels.map(({ card }) => card.id).join();
      this.chart.replaceChildren(...panels.map(({ card }) => el("option", { value: card.id }, card.text.title)));
    }
    for (const button of this.saves) button.disabled = !panels.every((panel) => panel.savable);
  }

  #chosen() {
    return this.panels().find(({ card }) => card.id === this.chart.value);
  }

  #pause(paused) {
    const { store } = this;
    this.view.set({ until: paused && store?.count ? store.lastStep : null });
  }

  draw(store) {
    this.store = store;
    const { smoothing, logValues, logSteps, until } = this.view;
    const { slider, says, usual } = this.smoothing;
    const value = String(smoothing ?? Number(USUAL.toFixed(2)));
    if (slider.value !== value) slider.value = value;
    setText(says, smoothing === null ? `${this.usual} only` : smoothing.toFixed(2));
    slider.setAttribute("aria-valuetext", smoothing === null ? `usual: ${this.usual} ${USUAL.toFixed(2)}` : smoothing.toFixed(2));
    usual.setAttribute("aria-pressed", String(smoothing === null));
    this.logValues.input.checked = logValues;
    this.logSteps.input.checked = logSteps;
    this.pause.checked = until !== null;
  }
}

// The sign that drawing is paused, with the way back.
export class PauseSign {
  constructor(view) {
    this.says = el("span", {});
    const draw = el("button", { type: "button" }, "Draw again");
    draw.addEventListener("click", () => view.set({ until: null }));
    this.root = el("div", { class: "paused", role: "status", hidden: "" }, this.says, draw);
    this.view = view;
  }

  draw() {
    const { until } = this.view;
    setHidden(this.root, until === null);
    setText(this.says, until === null ? "" : `Drawing paused at step ${until}; data keep coming.`);
  }
}
