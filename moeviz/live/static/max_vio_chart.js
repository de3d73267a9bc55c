// MaxVio, before the band in which a perfectly fair random router would lie.

import { apart, area, label, line } from "./brush.js";
import { perLayer } from "./facts.js";
import { Extents } from "./scale.js";
import { smoothed, weightOf, weightText } from "./smoothing.js";
import { number } from "./words.js";

export function maxVioChart() {
  const extents = new Extents();
  let curves = []; // of each layer: {raw, mean}, both value(index)
  const weight = (p) => weightOf(p.view);
  return {
    id: "max_vio",
    log: true,
    keys: [
      { look: "thick", text: "this run" },
      { look: "thin", text: "each step" },
      { look: "band", text: "fair router (95 %)" },
      { look: "dashed", text: "its mean" },
    ],
    legend: (p) => ({
      thick: weight(p) ? weightText(weight(p)) : "this run",
      thin: weight(p) ? "each step" : "",
      band: weight(p) ? "fair router" : "fair router (95 %)", // they share a line
    }),
    extent(p) {
      const { store } = p;
      curves = curvesOf(p, weight(p));
      const fair = [(i) => store.fair_max_vio[i], (i) => store.fair_max_vio_p95[i]];
      return extents.fit(p, [...fair, ...curves.map(({ raw }) => raw)], { zero: true });
    },
    paint(p) {
      const { store, theme } = p;
      const { raw, mean } = curves[p.layer];
      area(p, (i) => store.fair_max_vio_p95[i], theme.band);
      line(p, (i) => store.fair_max_vio[i], { color: theme.muted, width: 1.5, dash: [5, 4] });
      for (const other of curves) {
        if (other !== curves[p.layer]) line(p, other.mean, { color: weight(p) ? theme.muted : theme.thin, width: 1 });
      }
      if (weight(p)) line(p, raw, { color: theme.thin, width: 1 });
      line(p, mean, { color: theme.line, width: weight(p) ? 2.5 : 1.75 });
      if (store.layers > 1) nameLayers(p, curves);
    },
    readout(p, i) {
      const { raw, mean } = curves[p.layer];
      const lines = [`MaxVio ${number(raw(i))}`];
      if (p.store.layers > 1) lines[0] += ` (layer ${p.layer})`;
      if (weight(p)) lines.push(`${weightText(weight(p))}: ${number(mean(i))}`);
      return [...lines, `fair router ${number(p.store.fair_max_vio[i])}`];
    },
    describe: ({ store, layer }, i) =>
      `MaxVio at step ${store.step[i]}${store.layers > 1 ? `, layer ${layer}` : ""}: ` +
      `${number(perLayer(store, "max_vio", i, layer))}; a perfectly fair router would show ${number(store.fair_max_vio[i])}.`,
  };
}

function curvesOf({ store, end }, weight) {
  return Array.from({ length: store.layers }, (_, layer) => {
    const raw = (i) => perLayer(store, "max_vio", i, layer);
    const means = weight ? smoothed(store, end, weight, raw) : null;
    return { raw, mean: means ? (i) => means[i] : raw };
  });
}

function nameLayers(p, curves) {
  const i = p.last;
  const x = Math.min(p.x(p.store.step[i]) + 3, p.box.right - 18);
  const ends = curves.map(({ mean }, layer) => ({ layer, y: p.y(mean(i)) })).filter(({ y }) => Number.isFinite(y));
  for (const { layer, place } of apart(ends, p.box)) {
    label(p, `L${layer}`, x, place, layer === p.layer ? p.theme.line : p.theme.muted, { size: 11 });
  }
}
