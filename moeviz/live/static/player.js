// Moves through the steps of a recording, by itself or by hand.

import { el, setText } from "./dom.js";

const STEPS_PER_SECOND = 10; // at 1×
const SPEEDS = [1, 4, 16];
const LONGEST_MS = 500; // between two frames; a tab that was hidden goes on where it was
const JUMP = 10; // entries, with Shift

export class Player {
  // moved() is called whenever another entry is to be shown, or playing begins or ends.
  constructor(moved) {
    this.moved = moved;
    this.index = 0; // the entry shown
    this.place = 0; // the step reached: between two entries while it plays
    this.speed = SPEEDS[0];
    this.playing = false;
    this.button = el("button", { type: "button", class: "play" }, el("span", { class: "glyph", "aria-hidden": "true" }), el("span"));
    this.button.addEventListener("click", () => this.toggle());
    this.speeds = SPEEDS.map((speed) => this.#speedButton(speed));
    this.slider = el("input", { type: "range", "aria-label": "Step", step: "1" });
    this.slider.addEventListener("input", () => this.#go(this.#nearest(Number(this.slider.value))));
    this.label = el("output", { class: "at" });
    this.root = el(
      "div", { class: "player", role: "group", "aria-label": "Player" }, this.button,
      el("div", { class: "windows", role: "group", "aria-label": "Speed" }, ...this.speeds), this.slider, this.label,
    );
    // Before anything else on the page: a button that was clicked keeps the focus, and keeps keys from others.
    window.addEventListener("keydown", (event) => this.#key(event), true);
  }

  #speedButton(speed) {
    const told = `${speed * STEPS_PER_SECOND} steps per second`;
    const button = el("button", { type: "button", title: told, "aria-label": `${speed} times: ${told}` }, `${speed}×`);
    button.addEventListener("click", () => {
      this.speed = speed;
      this.#show();
    });
    return button;
  }

  // Another recording, at the same step if it has it.
  follow(store) {
    this.store = store;
    this.slider.min = store.step[0];
    this.slider.max = store.lastStep;
    this.#go(this.#nearest(this.place));
  }

  toggle() {
    this.playing = !this.playing;
    if (this.playing && this.index === this.store.count - 1) this.#go(0);
    this.before = undefined;
    if (this.playing) requestAnimationFrame((now) => this.#tick(now));
    this.#show();
  }

  #tick(now) {
    if (!this.playing) return;
    this.place += (this.speed * STEPS_PER_SECOND * Math.min(now - (this.before ?? now), LONGEST_MS)) / 1000;
    this.before = now;
    const { store } = this;
    if (this.place >= store.lastStep) this.playing = false;
    const index = Math.max(store.indexOf(this.place), 0);
    if (this.playing) requestAnimationFrame((next) => this.#tick(next));
    else this.place = store.lastStep;
    if (index === this.index && this.playing) return;
    this.index = index;
    this.#show();
  }

  #go(index) {
    this.index = Math.min(Math.max(index, 0), this.store.count - 1);
    this.place = this.store.step[this.index];
    this.#show();
  }

  // The entry whose step is nearest.
  #nearest(step) {
    const { store } = this;
    const index = Math.max(store.indexOf(step), 0);
    const next = Math.min(index + 1, store.count - 1);
    return store.step[next] - step < step - store.step[index] ? next : index;
  }

  #show() {
    const step = this.store.step[this.index];
    setText(this.button.lastChild, this.playing ? "Pause" : "Play");
    this.button.dataset.playing = String(this.playing);
    this.speeds.forEach((button, i) => button.setAttribute("aria-pressed", String(SPEEDS[i] === this.speed)));
    if (Number(this.slider.value) !== step) this.slider.value = step;
    this.slider.setAttribute("aria-valuetext", `step ${step} of ${this.store.lastStep}`);
    setText(this.label, `step ${step} / ${this.store.lastStep}`);
    this.moved();
  }

  #key(event) {
    const { target, key } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || !this.store) return;
    const jump = event.shiftKey ? JUMP : 1;
    const moves = { ArrowLeft: this.index - jump, ArrowRight: this.index + jump, Home: 0, End: this.store.count - 1 };
    // Controls keep the keys that they need themselves.
    if (target.matches("select, textarea, input:not([type=range])")) return;
    if (target.matches("input") && target !== this.slider && key !== " ") return;
    if (key === " ") {
      if (target.matches("button, summary, a")) return;
      this.toggle();
    } else if (key in moves) this.#go(moves[key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
