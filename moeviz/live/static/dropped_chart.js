// The share of (token, expert) pairs that found their expert or device full.

import { area, line } from "./brush.js";
import { perLayer } from "./facts.js";
import { Extents } from "./scale.js";
import { smoothed, weightOf, weightText } from "./smoothing.js";
import { percent } from "./words.js";

const WHAT = "dropped, % of (token, expert) pairs";

const share = (p, i) => 100 * perLayer(p.store, "dropped_fraction", i, p.layer);

export function droppedChart() {
  const extents = new Extents();
  const weight = (p) => weightOf(p.view);
  return {
    id: "dropped",
    log: true,
    keys: [{ look: "hatch", text: WHAT }, { look: "thick-dropped", text: "smoothed" }],
    legend: (p) => ({ hatch: weight(p) ? "dropped pairs" : WHAT, "thick-dropped": weight(p) ? weightText(weight(p)) : "" }),
    extent: (p) => extents.fit(p, [(i) => share(p, i)], { zero: true, least: 1 }),
    paint(p) {
      const color = p.theme.dropped;
      area(p, (i) => share(p, i), hatch(p));
      line(p, (i) => share(p, i), { color, width: weight(p) ? 0.75 : 1.25 });
      const means = weight(p) ? smoothed(p.store, p.end, weight(p), (i) => share(p, i)) : null;
      if (means) line(p, (i) => means[i], { color, width: 2.5 });
    },
    note(p) {
      let any = 0;
      for (let i = p.first; i <= p.last && p.store.count; i++) any = Math.max(any, share(p, i) || 0);
      if (any > 0 || !p.store.count) return "";
      if (p.store.knobs?.token_dropping === "none") return "Nothing is dropped: token dropping is off.";
      return p.logValues ? "Nothing is dropped: 0 has no place on a log axis." : "";
    },
    readout: (p, i) => [`dropped ${percent(perLayer(p.store, "dropped_fraction", i, p.layer))}`],
    describe: ({ store, layer }, i) =>
      `Dropped pairs at step ${store.step[i]}: ${percent(perLayer(store, "dropped_fraction", i, layer))}.`,
  };
}

// The same hatching as on the bars: dropped looks the same everywhere.
function hatch(p) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const ctx = tile.getContext("2d");
  ctx.strokeStyle = p.theme.dropped;
  ctx.globalAlpha = 0.6;
  for (const shift of [-6, 0, 6]) {
    ctx.moveTo(shift, 6);
    ctx.lineTo(shift + 6, 0);
  }
  ctx.stroke();
  return p.ctx.createPattern(tile, "repeat");
}
