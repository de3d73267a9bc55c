// Sliders of the page that turn a knob of the run at once, beside the script that Streamlit runs anyway.
//
// A move is left to the script alone while the script may be on its way for an earlier one, or for anything else: it
// would bring the older value after the newer one, and each would leave its mark.

const QUIET_MS = 500; // longer than a script run and its way there and back

// Where a key takes a slider. Streamlit takes a key for a release; asking the slider afterwards would cost the time it
// takes to draw itself.
const KEYS = {
  ArrowLeft: (now) => now - 1,
  ArrowDown: (now) => now - 1,
  ArrowRight: (now) => now + 1,
  ArrowUp: (now) => now + 1,
  Home: () => 0,
  End: (_now, last) => last,
};

export class Direct {
  // values() -> {name of a knob: the values of its slider, first to last}; write(knobs) -> promise.
  constructor({ values, write }) {
    Object.assign(this, { values, write });
    this.slider = null; // {name, input, before} while a pointer is down on one
    this.last = -Infinity; // when anything was last done that may have the script run
    this.writing = false;
    this.listeners = {
      keydown: (event) => this.#key(event),
      pointerdown: (event) => this.#press(event.target),
      pointerup: () => this.#release(),
      pointercancel: () => this.#release(),
    };
    for (const [type, listener] of Object.entries(this.listeners)) window.addEventListener(type, listener, true);
  }

  dispose() {
    for (const [type, listener] of Object.entries(this.listeners)) window.removeEventListener(type, listener, true);
  }

  // The page's script is about to run for another reason, with the value that a slider has now.
  hush() {
    this.last = performance.now();
  }

  #key({ key, target }) {
    const slider = key in KEYS && target.matches?.("input[type=range]") && this.#sliderAt(target);
    if (!slider) {
      this.hush();
      return;
    }
    const alone = this.#alone();
    const last = Number(slider.input.max);
    const next = Math.min(Math.max(KEYS[key](slider.before, last), 0), last);
    if (alone) this.#send(slider, next);
  }

  #press(target) {
    this.slider = this.#sliderAt(target);
    if (this.slider) this.slider.alone = this.#alone();
  }

  // A dragged slider shows its new value by now; Streamlit hears of the release after us.
  #release() {
    const { slider } = this;
    this.slider = null;
    this.hush();
    if (slider?.alone) this.#send(slider, Number(slider.input.value));
  }

  #sliderAt(target) {
    for (const name of Object.keys(this.values())) {
      const input = target.closest?.(`.st-key-${name}`)?.querySelector("input[type=range]");
      if (input && !input.disabled) return { name, input, before: Number(input.value) };
    }
    return null;
  }

  // Whether no other move is under way; this one is from now on.
  #alone() {
    const alone = performance.now() - this.last > QUIET_MS && !this.writing && scriptRests();
    this.hush();
    return alone;
  }

  async #send({ name, before }, index) {
    const value = this.values()[name][index];
    if (index === before || value === undefined) return;
    this.writing = true;
    await this.write({ [name]: value });
    this.writing = false;
  }
}

function scriptRests() {
  return document.querySelector("[data-test-script-state]")?.dataset.testScriptState === "notRunning";
}
