// Moves a view through the steps of a recording: by itself at a speed, or by keys. The slider is the page's time bar.

import { el, setText } from "./dom.js";

const STEPS_PER_SECOND = 10; // at 1×
const SPEEDS = [1, 4, 16];
const LONGEST_MS = 500; // between two frames; a tab that was hidden goes on where it was
const JUMP = 10; // entries, with Shift

export class Player {
  constructor(view, bar) {
    this.view = view;
    this.speed = SPEEDS[0];
    this.playing = false;
    this.place = 0; // the step reached while it plays: between two entries
    this.button = el("button", { type: "button", class: "play" }, el("span", { class: "glyph", "aria-hidden": "true" }), el("span"));
    this.button.addEventListener("click", () => this.toggle());
    this.speeds = SPEEDS.map((speed) => this.#speedButton(speed));
    const speeds = el("div", { class: "windows", role: "group", "aria-label": "Speed" }, ...this.speeds);
    this.slider = bar.slider;
    this.root = el("div", { class: "player", role: "group", "aria-label": "Player" }, this.button, speeds, bar.root);
    // Before anything else on the page: a button that was clicked keeps the focus, and keeps keys from others.
    window.addEventListener("keydown", (event) => this.#key(event), true);
  }

  #speedButton(speed) {
    const told = `${speed * STEPS_PER_SECOND} steps per second`;
    const button = el("button", { type: "button", title: told, "aria-label": `${speed} times: ${told}` }, `${speed}×`);
    button.addEventListener("click", () => {
      this.speed = speed;
      this.view.changed();
    });
    return button;
  }

  // Another recording, at the same step if it has it.
  follow(store) {
    this.store = store;
    this.#goTo(this.view.at === null ? 0 : this.view.index(store));
  }

  // A recording has no newest moment that moves on: the end is a step like any other.
  draw() {
    const { view, store } = this;
    view.at = store.step[view.index(store)];
    setText(this.button.lastChild, this.playing ? "Pause" : "Play");
    this.button.dataset.playing = String(this.playing);
    this.speeds.forEach((button, i) => button.setAttribute("aria-pressed", String(SPEEDS[i] === this.speed)));
  }

  toggle() {
    this.playing = !this.playing;
    const { view, store } = this;
    if (this.playing && view.index(store) === store.count - 1) this.#goTo(0);
    this.place = this.reached = view.at;
    this.before = undefined;
    if (this.playing) requestAnimationFrame((now) => this.#tick(now));
    view.changed();
  }

  #tick(now) {
    if (!this.playing) return;
    const { view, store } = this;
    if (view.at !== this.reached) this.place = view.at ?? store.lastStep; // somebody moved the slider
    this.place += (this.speed * STEPS_PER_SECOND * Math.min(now - (this.before ?? now), LONGEST_MS)) / 1000;
    this.before = now;
    if (this.place >= store.lastStep) this.playing = false;
    else requestAnimationFrame((next) => this.#tick(next));
    this.reached = store.step[Math.max(store.indexOf(this.place), 0)];
    if (view.at !== this.reached || !this.playing) view.set({ at: this.reached });
  }

  #goTo(index) {
    this.view.set({ at: this.store.step[Math.min(Math.max(index, 0), this.store.count - 1)] });
  }

  #key(event) {
    const { target, key } = event;
    if (event.ctrlKey || event.altKey || event.metaKey || !this.store) return;
    const [now, jump] = [this.view.index(this.store), event.shiftKey ? JUMP : 1];
    const moves = { ArrowLeft: now - jump, ArrowRight: now + jump, Home: 0, End: this.store.count - 1 };
    // Other controls keep the keys that they need themselves.
    if (target.matches("select, textarea, input:not([type=range])")) return;
    if (target.matches("input") && target !== this.slider && key !== " ") return;
    if (key === " " && target.matches("button, summary, a")) return;
    if (key === " ") this.toggle();
    else if (key in moves) this.#goTo(moves[key]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}
