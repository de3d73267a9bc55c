// Which moment do the charts show? A slider over the steps that are kept; at its end it is live.
//
// For any page with a View and a Store; training never hears of it.

import { el, setHidden, setText } from "./dom.js";

export class TimeBar {
  // `branch(step)` is called by the button that a past moment then has; `live` names the newest moment.
  constructor(view, { branch = null, live = "Live" } = {}) {
    this.view = view;
    this.store = null;
    this.held = false;
    this.live = el("button", { type: "button", class: "live", title: "Show the newest step" }, live);
    this.back = stepButton("‹", "One step back");
    this.forward = stepButton("›", "One step forward");
    this.slider = el("input", { type: "range", min: "0", max: "0", step: "1", "aria-label": "Step shown" });
    this.text = el("span", { class: "moment", "aria-hidden": "true" });
    this.branch = el("button", { type: "button", class: "branch", hidden: "" }, "Branch from here");
    this.root = el(
      "div", { class: "time-bar", role: "group", "aria-label": "Time" },
      this.live, this.back, this.slider, this.forward, this.text, this.branch,
    );
    this.branches = branch;
    this.#listen();
  }

  #listen() {
    this.live.addEventListener("click", () => this.view.set({ at: null, until: null }));
    this.back.addEventListener("click", () => this.#move(-1));
    this.forward.addEventListener("click", () => this.#move(1));
    this.branch.addEventListener("click", () => this.branches(this.store.step[this.view.index(this.store)]));
    this.slider.addEventListener("input", () => this.#show(Number(this.slider.value)));
    this.slider.addEventListener("keydown", (event) => this.#key(event));
    // While a finger holds the thumb the scale stands still, however far the training goes.
    this.slider.addEventListener("pointerdown", () => (this.held = true));
    for (const type of ["pointerup", "pointercancel", "change", "blur"]) {
      this.slider.addEventListener(type, () => (this.held = false));
    }
  }

  // Arrows go from one kept step to the next: the slider's own would stay where steps are missing.
  #key(event) {
    const by = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.#move(by);
  }

  #move(by) {
    if (!this.store?.count) return;
    const index = Math.max(this.view.index(this.store) + by, 0);
    this.#show(this.store.step[Math.min(index, this.view.end(this.store))]);
  }

  // The slider's end is the newest moment, and stays it.
  #show(step) {
    this.view.set({ at: step >= Number(this.slider.max) ? null : step });
  }

  draw(store, { branchable = true } = {}) {
    this.store = store;
    const { view } = this;
    const [end, index] = [view.end(store), view.index(store)];
    const past = view.at !== null;
    const [last, step] = store.count ? [store.step[end], store.step[index]] : [0, 0];
    if (!this.held) {
      this.#write("min", store.count ? store.step[0] : 0);
      this.#write("max", last);
      this.#write("value", step);
    }
    this.#write("disabled", end < 1);
    this.back.disabled = index < 1;
    this.forward.disabled = !past;
    setText(this.text, store.count ? `step ${step}${past ? ` of ${last}` : ""}` : "");
    // A screen reader would say every new step of a slider that has the focus.
    this.#say(this.slider, "aria-valuetext", past ? `step ${step} of ${last}` : "live, the newest step");
    this.#say(this.live, "aria-pressed", String(!past && view.until === null));
    this.root.classList.toggle("past", past);
    setHidden(this.branch, !(past && this.branches && branchable));
  }

  #write(name, value) {
    if (this.slider[name] !== (typeof value === "number" ? String(value) : value)) this.slider[name] = value;
  }

  #say(node, name, value) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
}

function stepButton(mark, name) {
  return el("button", { type: "button", class: "step-by", "aria-label": name, title: name }, mark);
}
