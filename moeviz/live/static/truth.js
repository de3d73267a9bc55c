// Eight identities, checked on the training's own batches: a mark, a name and a colour for each.

import { el, setHidden, setText } from "./dom.js";

const LOOKS = {
  true: { mark: "✓", word: "holds" },
  false: { mark: "✗", word: "does not hold" },
  null: { mark: "–", word: "does not apply" },
};
const ELSEWHEN = "Checked on the newest step only, which is not the one shown.";
const LATER = "Computed once your run trains.";

export class Truth {
  constructor(names, info) {
    this.info = info;
    this.opened = () => {}; // called when somebody opens one, to read its numbers
    this.chips = names.map((name) => this.#chip(name));
    this.alarm = el("span", { class: "alarm", role: "status" });
    this.elsewhen = el("span", { class: "elsewhen", hidden: "" }, ELSEWHEN);
    this.root = el(
      "div", { class: "truth", role: "group", "aria-label": "Identities checked on the current batch" },
      el("span", { class: "truth-title", "aria-hidden": "true" }, "Must hold"), ...this.chips.map((chip) => chip.button),
      this.alarm, this.elsewhen,
    );
  }

  #chip(name) {
    const mark = el("span", { class: "mark", "aria-hidden": "true" });
    const button = el("button", { type: "button", class: "chip", "aria-expanded": "false" }, mark, name);
    const chip = { name, mark, button, identity: null };
    // Asked when it is opened, so that it shows the newest numbers.
    button.addEventListener("click", () => {
      this.info.open(button, describe(chip));
      this.opened();
    });
    return chip;
  }

  // Whether one of them is open.
  get read() {
    return this.chips.some(({ button }) => this.info.shows(button));
  }

  // `identities` of the newest check, or null while there is none. They say nothing about a `past` moment.
  draw(identities, past = false) {
    this.root.classList.toggle("past", past);
    setHidden(this.elsewhen, !past);
    for (const chip of this.chips) {
      const identity = identities?.find(({ name }) => name === chip.name) ?? null;
      if (identity === chip.identity && chip.drawn) continue;
      Object.assign(chip, { identity, drawn: true });
      const { mark, word } = LOOKS[identity ? identity.holds : null];
      setText(chip.mark, mark);
      chip.button.dataset.holds = String(identity ? identity.holds : null);
      const said = identity ? `${chip.name} ${word}. ${identity.sentence}` : `${chip.name} is not computed yet.`;
      chip.button.setAttribute("aria-label", said);
      this.info.refresh(chip.button, describe(chip));
    }
    const failing = identities?.find(({ holds }) => holds === false);
    setText(this.alarm, failing ? `${failing.name}: ${failing.sentence}` : "");
  }
}

function describe({ name, identity }) {
  if (!identity) return { title: name, meaning: LATER };
  const { sentence, numbers, source, holds } = identity;
  return { title: `${name} ${LOOKS[holds].word}`, meaning: sentence, formula: numbers, source };
}
