// The numbers above the charts, readable from the back row.

import { el, setText } from "./dom.js";
import { grouping, heldOutAt, perLayer } from "./facts.js";
import { fixed, number, percent } from "./words.js";

export class Strip {
  constructor(texts, info) {
    this.root = el("dl", { class: "strip" });
    this.tiles = {};
    for (const [name, text] of Object.entries(texts)) {
      const value = el("dd", { class: "value" }, "–");
      const more = el("dd", { class: "more" }, "\u00a0");
      const title = el("dt", {}, el("span", {}, text.title), info.button(text));
      this.root.append(el("div", { class: "tile" }, title, value, more));
      this.tiles[name] = { value, more };
    }
  }

  draw(store, view, state) {
    const index = view.index(store);
    const past = index < store.count - 1 || view.at !== null;
    const then = past ? { playing: true, word: `of ${store.lastStep}` } : state;
    const facts = index < 0 ? {} : at(store, index, Math.min(view.layer, store.layers - 1), then);
    for (const [name, { value, more }] of Object.entries(this.tiles)) {
      const [main, small] = facts[name] ?? ["–", ""];
      setText(value, main);
      setText(more, small || "\u00a0");
    }
  }
}

// What each tile says of one entry: the number, and a smaller line under it.
function at(store, i, layer, state) {
  const knobs = store.knobsAt(i);
  const { groups } = grouping(store, knobs);
  const of = store.layers > 1 ? `layer ${layer}` : "";
  return {
    step: [String(store.step[i]), state.word],
    loss: [fixed(heldOutAt(store, i).loss, 3), `training ${fixed(store.smooth_loss[i], 3)}`],
    max_vio: [fixed(perLayer(store, "max_vio", i, layer), 2), `fair router ${fixed(store.fair_max_vio[i], 2)}`],
    dead: [`${perLayer(store, "dead_experts", i, layer)} / ${store.experts}`, of],
    dropped: [
      percent(perLayer(store, "dropped_fraction", i, layer)),
      knobs?.token_dropping === "none" ? "dropping is off" : knobs ? `per ${knobs.token_dropping}` : "",
    ],
    groups: [
      fixed(perLayer(store, "fan_out", i, layer), groups > 1 ? 2 : 0),
      groups > 1 ? `of ${groups}, at most ${knobs.groups_kept}` : knobs ? "no groups" : "",
    ],
    speed: [state.playing ? number(store.steps_per_second[i], 2) : "0", state.playing ? "" : "paused"],
  };
}
