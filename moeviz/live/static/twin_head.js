// The heading of a twin's column: who it is, what differs, where it parted, and four numbers.

import { el, setHidden, setText } from "./dom.js";
import { heldOutAt, perLayer } from "./facts.js";
import { letterOf, sampleOf, symbolOf } from "./twin_look.js";
import { fixed, percent } from "./words.js";

const NUMBERS = [["loss", "held-out"], ["max_vio", "MaxVio"], ["dead", "dead"], ["dropped", "dropped"]];
const BASE = "base";
const NOTHING = "no difference yet";

export class TwinHead {
  constructor(lane, choose) {
    const { id, name } = lane;
    const letter = `${symbolOf(lane)} ${name}`;
    this.choose = el("button", { type: "button", class: "letter", "aria-pressed": "false", title: `Choose ${name}` }, letter);
    this.choose.addEventListener("click", () => choose(id));
    this.what = el("span", { class: "what" });
    this.clock = el("p", { class: "clock" });
    this.stopped = el("p", { class: "stopped", role: "status", hidden: "" });
    this.values = {};
    const tiles = NUMBERS.map(([key, title]) => {
      this.values[key] = el("dd", {}, "–");
      return el("div", {}, el("dt", {}, title), this.values[key]);
    });
    const head = el("header", {}, this.choose, sampleOf(lane), this.what);
    this.root = el("article", { class: "twin", "data-look": letterOf(lane), "data-twin": String(id) }, head, this.clock);
    this.root.append(el("dl", {}, ...tiles), this.stopped);
  }

  // `index` is the entry shown, `nameOf` gives another twin's name.
  draw(lane, index, view, nameOf) {
    const { said } = lane;
    const what = whatDiffers(said, nameOf);
    setText(this.what, what);
    this.what.title = what;
    this.root.setAttribute("aria-label", `Twin ${lane.name}: ${what}`);
    this.choose.setAttribute("aria-pressed", String(view.twin === lane.id));
    setText(this.clock, clock(lane, index));
    this.clock.title = clockInWords(lane);
    setText(this.stopped, said.diverged);
    setHidden(this.stopped, !said.diverged);
    this.root.classList.toggle("still", Boolean(said.diverged));
    const numbers = index < 0 ? {} : facts(lane.store, index, Math.min(view.layer, lane.store.layers - 1));
    for (const [key, value] of Object.entries(this.values)) setText(value, numbers[key] ?? "–");
  }
}

export function whatDiffers({ parent, since, differences }, nameOf) {
  if (parent === null) return BASE;
  const branch = since > 0 ? `from ${nameOf(parent)} at step ${since}` : "";
  return [differences.join("; ") || NOTHING, branch].filter(Boolean).join(", ");
}

// Where a twin parted from the base, and how far apart the two are at the entry shown.
export function clock({ said, store }, index) {
  if (said.parent === null) return "what the others are compared with";
  if (index < 0) return "had not begun by then";
  const step = store.step[index];
  const { parted } = said;
  if (!parted || parted.step > step) return `identical so far: ${step} ${step === 1 ? "step" : "steps"}`;
  const share = store.routed_differently[index];
  const now = Number.isFinite(share) ? ` · ${percent(share)} differ now` : "";
  return `parted at step ${parted.step}, token ${parted.token}${now}`;
}

function clockInWords({ said }) {
  if (said.parent === null) return "";
  if (!said.parted) return "So far it has sent every token to the same experts as A.";
  const { step, token } = said.parted;
  return `Token ${token} of the batch of step ${step} is the first that went to other experts than A's. Then: the share of the batch's tokens that do so now.`;
}

function facts(store, index, layer) {
  return {
    loss: fixed(heldOutAt(store, index).loss, 3),
    max_vio: fixed(perLayer(store, "max_vio", index, layer), 2),
    dead: `${perLayer(store, "dead_experts", index, layer)} / ${store.experts}`,
    dropped: percent(perLayer(store, "dropped_fraction", index, layer)),
  };
}
