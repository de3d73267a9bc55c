// MaxVio, before the band in which a perfectly fair random router would lie.

import { area, label, line } from "./brush.js";
import { perLayer } from "./facts.js";
import { Extent } from "./scale.js";
import { number } from "./words.js";

export function maxVioChart() {
  const extent = new Extent();
  return {
    id: "max_vio",
    keys: [
      { look: "thick", text: "this run" },
      { look: "band", text: "fair router (95 %)" },
      { look: "dashed", text: "its mean" },
    ],
    extent(p) {
      let high = 0;
      for (let i = p.first; i <= p.last; i++) {
        high = Math.max(high, p.store.fair_max_vio_p95[i] || 0);
        for (let layer = 0; layer < p.store.layers; layer++) high = Math.max(high, perLayer(p.store, "max_vio", i, layer) || 0);
      }
      return extent.fit(0, high);
    },
    paint(p) {
      const { store, theme } = p;
      area(p, (i) => store.fair_max_vio_p95[i], theme.band);
      line(p, (i) => store.fair_max_vio[i], { color: theme.muted, width: 1.5, dash: [5, 4] });
      for (let layer = 0; layer < store.layers; layer++) {
        if (layer !== p.layer) line(p, (i) => perLayer(store, "max_vio", i, layer), { color: theme.thin, width: 1 });
      }
      line(p, (i) => perLayer(store, "max_vio", i, p.layer), { color: theme.line, width: 1.75 });
      if (store.layers > 1) nameLayers(p);
    },
    readout(p, i) {
      const lines = [`MaxVio ${number(perLayer(p.store, "max_vio", i, p.layer))}`];
      if (p.store.layers > 1) lines[0] += ` (layer ${p.layer})`;
      return [...lines, `fair router ${number(p.store.fair_max_vio[i])}`];
    },
    describe: ({ store, layer }, i) =>
      `MaxVio at step ${store.step[i]}${store.layers > 1 ? `, layer ${layer}` : ""}: ` +
      `${number(perLayer(store, "max_vio", i, layer))}; a perfectly fair router would show ${number(store.fair_max_vio[i])}.`,
  };
}

function nameLayers(p) {
  const i = p.last;
  for (let layer = 0; layer < p.store.layers; layer++) {
    const y = p.y(perLayer(p.store, "max_vio", i, layer));
    const color = layer === p.layer ? p.theme.line : p.theme.muted;
    if (Number.isFinite(y)) label(p, `L${layer}`, Math.min(p.x(p.store.step[i]) + 3, p.box.right - 18), y, color, { size: 11 });
  }
}
