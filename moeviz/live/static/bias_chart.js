// The selection bias of every expert, one line each; the selected and the pointed-at one stand out.
//
// Drawn relative to the layer's mean: the sign rule lets all biases drift together, and a constant added to all of them
// changes no choice.

import { label, line } from "./brush.js";
import { Extent } from "./scale.js";
import { cividis, css } from "./theme.js";
import { number } from "./words.js";

const REACH_PX = 14;

const rawBiasOf = (p, index, expert) => p.store.bias[p.store.row(index, p.layer) + expert];
const meanOf = (p, index) => p.store.mean_bias[index * p.store.layers + p.layer];
const biasOf = (p, index, expert) => rawBiasOf(p, index, expert) - meanOf(p, index);

export function biasChart() {
  const extent = new Extent();
  return {
    id: "bias",
    keys: [{ look: "map", text: "one line per expert, dark to light: first to last" }],
    extent(p) {
      const { bias, experts, count } = p.store;
      let [low, high] = [Infinity, -Infinity];
      for (let i = p.first; i <= p.last && count; i++) {
        const [start, mean] = [p.store.row(i, p.layer), meanOf(p, i)];
        for (let k = start; k < start + experts; k++) {
          const value = bias[k] - mean;
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
      return high - low < 1e-6 ? extent.fit(low - 1e-3, high + 1e-3) : extent.fit(low, high);
    },
    paint(p) {
      const indices = sample(p);
      const { experts } = p.store;
      for (let e = 0; e < experts; e++) {
        const color = lineColor(p, e);
        line(p, (i) => biasOf(p, i, e), { color, width: experts > 32 ? 1 : 1.5, indices });
      }
      for (const e of new Set([p.hoverExpert, p.view.expert])) if (e >= 0 && e < experts) emphasise(p, e, indices);
    },
    note(p) {
      const off = p.store.knobs?.bias_rule === "none" && p.store.count;
      return off && sample(p).every((i) => flat(p, i)) ? "No bias: balancing is not loss‑free." : "";
    },
    // The line nearest to the pointer, within reach.
    expertAt(p, index, y) {
      let [nearest, distance] = [-1, REACH_PX];
      for (let e = 0; e < p.store.experts; e++) {
        const away = Math.abs(p.y(biasOf(p, index, e)) - y);
        if (away < distance) [nearest, distance] = [e, away];
      }
      return flat(p, index) ? -1 : nearest;
    },
    readout(p, i) {
      const [low, high] = ends(p, i);
      const named = [...new Set([p.hoverExpert, p.view.expert])].filter((e) => e >= 0 && e < p.store.experts);
      if (named.length) return named.map((e) => `expert ${e}: ${number(biasOf(p, i, e))} (b = ${number(rawBiasOf(p, i, e))})`);
      return [
        `highest ${number(biasOf(p, i, high))} (expert ${high})`,
        `lowest ${number(biasOf(p, i, low))} (expert ${low})`,
        `mean b = ${number(meanOf(p, i))}`,
      ];
    },
    describe(p, i) {
      const [low, high] = ends(p, i);
      return (
        `Selection bias at step ${p.store.step[i]}, relative to its mean ${number(meanOf(p, i))}: from ${number(biasOf(p, i, low))} (expert ${low}) ` +
        `to ${number(biasOf(p, i, high))} (expert ${high}).`
      );
    },
  };
}

// More entries than pixels add nothing to slow lines; anchored to the entries, so that the picture does not shiver.
function sample(p) {
  const stride = Math.max(1, Math.floor((p.last - p.first) / p.box.width));
  const indices = [];
  for (let i = p.first; i <= p.last; i++) if (i % stride === 0 || i === p.last) indices.push(i);
  return indices;
}

function lineColor(p, expert) {
  const [from, to] = p.theme.map;
  return css(cividis(from + ((to - from) * expert) / Math.max(p.store.experts - 1, 1)));
}

function emphasise(p, expert, indices) {
  line(p, (i) => biasOf(p, i, expert), { color: p.theme.background, width: 6, indices });
  const color = expert === p.view.expert ? p.theme.select : p.theme.text;
  line(p, (i) => biasOf(p, i, expert), { color, width: 3, indices });
  const x = Math.min(p.x(p.store.step[p.last]), p.box.right) - 4;
  const y = Math.max(p.y(biasOf(p, p.last, expert)) - 10, p.box.top + 8);
  label(p, `expert ${expert}`, x, y, color, { align: "right" });
}

function ends(p, index) {
  let [low, high] = [0, 0];
  for (let e = 1; e < p.store.experts; e++) {
    if (biasOf(p, index, e) < biasOf(p, index, low)) low = e;
    if (biasOf(p, index, e) > biasOf(p, index, high)) high = e;
  }
  return [low, high];
}

// All biases are exactly zero.
function flat(p, index) {
  const start = p.store.row(index, p.layer);
  for (let e = 0; e < p.store.experts; e++) if (p.store.bias[start + e] !== 0) return false;
  return true;
}
