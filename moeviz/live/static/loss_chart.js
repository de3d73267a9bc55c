// Task loss: every batch thin, what remains when its noise is averaged away thick, held-out data as diamonds.

import { diamond, line } from "./brush.js";
import { heldOutAt } from "./facts.js";
import { Extents } from "./scale.js";
import { smoothed, USUAL, weightOf, weightText } from "./smoothing.js";
import { number } from "./words.js";

export function lossChart() {
  const extents = new Extents();
  let curves = {}; // id of the key's entry -> value(index)
  const weight = (p) => weightOf(p.view, USUAL);
  return {
    id: "loss",
    log: true,
    keys: [
      { id: "task_loss", look: "thin", text: "batch" },
      { id: "smooth_loss", look: "thick", text: weightText(USUAL) },
      { id: "eval_loss", look: "diamond", text: "held-out" },
    ],
    legend: (p) => ({ thin: weight(p) ? "batch" : "", thick: weight(p) ? weightText(weight(p)) : "batch" }),
    extent(p) {
      curves = curvesOf(p, weight(p));
      return extents.fit(p, Object.keys(curves).filter((id) => !p.hidden.has(id)).map((id) => curves[id]));
    },
    paint(p) {
      const { theme } = p;
      if (!p.hidden.has("task_loss") && weight(p)) line(p, curves.task_loss, { color: theme.thin, width: 1 });
      if (!p.hidden.has("smooth_loss")) line(p, curves.smooth_loss, { color: theme.line, width: 2.5 });
      if (!p.hidden.has("eval_loss")) heldOut(p);
    },
    readout(p, i) {
      const lines = [`batch ${number(curves.task_loss(i))}`];
      if (weight(p)) lines.push(`${weightText(weight(p))}: ${number(curves.smooth_loss(i))}`);
      if (Number.isFinite(p.store.eval_loss[i])) lines.push(`held-out ${number(p.store.eval_loss[i])}`);
      return lines;
    },
    describe(p, i) {
      const { loss, step } = heldOutAt(p.store, i);
      const { smooth_loss: mean } = curvesOf({ ...p, end: i }, weight(p)); // what is spoken may be newer than what is drawn
      const said = `Task loss at step ${p.store.step[i]}: ${number(mean(i))}, ${weightText(weight(p))}`;
      return Number.isFinite(loss) ? `${said}; held-out ${number(loss)} at step ${step}.` : `${said}.`;
    },
  };
}

// The usual mean was taken when every step was there; another one is taken of the steps that are left.
function curvesOf({ store, view, end }, weight) {
  const batch = (i) => store.task_loss[i];
  const means = view.smoothing === null ? store.smooth_loss : smoothed(store, end, weight, batch);
  return { task_loss: batch, smooth_loss: (i) => means[i], eval_loss: (i) => store.eval_loss[i] };
}

// Diamonds that would touch are left out, the newest always stays.
function heldOut(p) {
  let right = Infinity;
  for (let i = p.last; i >= p.first; i--) {
    const [x, y] = [p.x(p.store.step[i]), p.y(p.store.eval_loss[i])];
    if (!Number.isFinite(y) || !(right - x >= 7)) continue;
    diamond(p, x, y, 4.5, p.theme.heldOut);
    right = x;
  }
}
