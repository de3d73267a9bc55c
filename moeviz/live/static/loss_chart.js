// Task loss: every batch thin, its running mean thick, held-out data as diamonds.

import { diamond, line } from "./brush.js";
import { Extent } from "./scale.js";
import { number } from "./words.js";

const KEEPS = ["task_loss", "smooth_loss", "eval_loss"];

export function lossChart() {
  const extent = new Extent();
  return {
    id: "loss",
    keys: [
      { id: "task_loss", look: "thin", text: "batch" },
      { id: "smooth_loss", look: "thick", text: "running mean" },
      { id: "eval_loss", look: "diamond", text: "held-out" },
    ],
    extent(p) {
      let [low, high] = [Infinity, -Infinity];
      for (const name of KEEPS) {
        if (p.hidden.has(name)) continue;
        for (let i = p.first; i <= p.last; i++) {
          const value = p.store[name][i];
          if (value < low) low = value;
          if (value > high) high = value;
        }
      }
      return extent.fit(low, high);
    },
    paint(p) {
      const { store, theme } = p;
      if (!p.hidden.has("task_loss")) line(p, (i) => store.task_loss[i], { color: theme.thin, width: 1 });
      if (!p.hidden.has("smooth_loss")) line(p, (i) => store.smooth_loss[i], { color: theme.line, width: 2.5 });
      if (!p.hidden.has("eval_loss")) heldOut(p);
    },
    readout: (p, i) => {
      const lines = [`batch ${number(p.store.task_loss[i])}`, `running mean ${number(p.store.smooth_loss[i])}`];
      if (Number.isFinite(p.store.eval_loss[i])) lines.push(`held-out ${number(p.store.eval_loss[i])}`);
      return lines;
    },
    describe: ({ store }, i) =>
      `Task loss at step ${store.step[i]}: running mean ${number(store.smooth_loss[i])}` +
      (Number.isFinite(store.lastHeldOut) ? `, held-out ${number(store.lastHeldOut)} at step ${store.lastHeldOutStep}.` : "."),
  };
}

// Diamonds that would touch are left out, the newest always stays.
function heldOut(p) {
  let right = Infinity;
  for (let i = p.last; i >= p.first; i--) {
    const value = p.store.eval_loss[i];
    const x = p.x(p.store.step[i]);
    if (!Number.isFinite(value) || right - x < 7) continue;
    diamond(p, x, p.y(value), 4.5, p.theme.heldOut);
    right = x;
  }
}
