// The share of (token, expert) pairs that found their expert or device full.

import { area, line } from "./brush.js";
import { perLayer } from "./facts.js";
import { Extent } from "./scale.js";
import { percent } from "./words.js";

const share = (p, i) => 100 * perLayer(p.store, "dropped_fraction", i, p.layer);

export function droppedChart() {
  const extent = new Extent();
  return {
    id: "dropped",
    keys: [{ look: "hatch", text: "dropped, % of (token, expert) pairs" }],
    extent(p) {
      let high = 1;
      for (let i = p.first; i <= p.last; i++) high = Math.max(high, share(p, i) || 0);
      return extent.fit(0, high);
    },
    paint(p) {
      area(p, (i) => share(p, i), hatch(p));
      line(p, (i) => share(p, i), { color: p.theme.dropped, width: 1.25 });
    },
    note(p) {
      let any = 0;
      for (let i = p.first; i <= p.last && p.store.count; i++) any = Math.max(any, share(p, i) || 0);
      return p.store.knobs?.token_dropping === "none" && any === 0 ? "Nothing is dropped: token dropping is off." : "";
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
