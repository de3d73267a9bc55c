// Expert load now: a bar per expert, the part that was dropped hatched on top, before the band of a fair router.
//
// Over-used experts have a dark outline and a ▲, dead ones a ✕, the selected one a thick frame: never the hue alone.

import { deadExperts, expertTicks, grouping, perLayer } from "./facts.js";
import { setHidden } from "./dom.js";
import { Panel } from "./panel.js";
import { Extent } from "./scale.js";
import { axis, title } from "./theme.js";
import { fixed, number } from "./words.js";

export class LoadChart extends Panel {
  constructor(card, page) {
    super(card, page);
    this.extent = new Extent();
    this.kind = {
      id: "load",
      keys: [
        { look: "dashed", text: "balanced" },
        { look: "band", text: "fair router" },
        { look: "hatch", text: "dropped" },
        { text: "✕ dead" },
        { text: "▲ over" },
      ],
    };
  }

  layout(theme) {
    return { ...this.#axes(theme), dragmode: false, barmode: "stack", bargap: 0.16 };
  }

  #axes(theme) {
    const experts = this.store?.experts ?? 16;
    return {
      xaxis: axis(theme, {
        range: [-0.5, experts - 0.5], fixedrange: true, showgrid: false, dtick: expertTicks(experts), tick0: 0,
        title: title(theme, "expert"),
      }),
      yaxis: axis(theme, { range: this.extent.range, fixedrange: true, nticks: 5, tickformat: ",d" }),
    };
  }

  draw(store) {
    if (!this.dressed || !this.onScreen || !this.measure()) return false;
    this.store = store;
    const { view } = this.page;
    const layer = Math.min(view.layer, store.layers - 1);
    const same = [store.serial, store.lastStep, layer, view.expert, this.size, JSON.stringify(store.knobs)].join("|");
    if (same === this.drawnAs) return false;
    this.drawnAs = same;
    this.now = facts(store, layer);
    const layout = {
      ...this.axes.layout, ...this.#axes(this.theme), width: this.size[0], height: this.size[1],
      shapes: [], annotations: [],
    };
    if (this.now) this.#fill(layout);
    this.#offerDropped();
    this.page.Plotly.react(this.axes, this.now ? this.#bars() : this.traces(), layout);
    return true;
  }

  #fill(layout) {
    const { loads, mean, bandHigh, store } = this.now;
    const top = Math.max(...loads, bandHigh);
    layout.yaxis.range = [...this.extent.fit(0, top * 1.1)];
    layout.shapes = [this.#band(), this.#line(mean), ...this.#separators()];
    layout.annotations = groupNames(store, this.box.width, this.theme);
  }

  // The hatching is explained only where there can be any.
  #offerDropped() {
    const dropping = (this.store.knobs?.token_dropping ?? "none") !== "none";
    const entry = this.card.key.querySelector('[data-look="hatch"]');
    setHidden(entry, !dropping && !this.now?.loads.some((load, e) => load > this.now.kept[e]));
  }

  #band() {
    const { bandLow, bandHigh } = this.now;
    const line = { width: 0 };
    return { type: "rect", xref: "paper", x0: 0, x1: 1, y0: bandLow, y1: bandHigh, fillcolor: this.theme.band, line, layer: "below" };
  }

  #line(mean) {
    return { type: "line", xref: "paper", x0: 0, x1: 1, y0: mean, y1: mean, line: { color: this.theme.text, width: 1.5, dash: "dash" } };
  }

  #separators() {
    const { groups, size } = grouping(this.store);
    const line = { color: this.theme.muted, width: 1, dash: "dot" };
    return Array.from({ length: groups - 1 }, (_, i) => {
      const x = (i + 1) * size - 0.5;
      return { type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1.08, line };
    });
  }

  #bars() {
    const { loads, kept, over } = this.now;
    const { theme } = this;
    const selected = this.page.view.expert;
    const rim = loads.length > 32 ? 0.75 : 1.5;
    const color = loads.map((_, e) => (over[e] ? theme.barOver : theme.bar));
    const outline = loads.map((_, e) => (e === selected ? theme.select : theme.edge));
    const width = loads.map((_, e) => (e === selected ? 3 : over[e] ? rim : 0));
    const dropped = loads.map((load, e) => load - kept[e]);
    const pattern = { shape: "/", fgcolor: theme.dropped, bgcolor: "rgba(0,0,0,0)", size: 5, solidity: 0.35 };
    return [
      { type: "bar", y: kept, marker: { color, line: { color: outline, width } }, hoverinfo: "skip" },
      {
        type: "bar", y: dropped, hoverinfo: "skip",
        marker: { color: theme.dropped, pattern, line: { color: theme.dropped, width: dropped.map((d) => (d > 0 ? 1 : 0)) } },
      },
      this.#glyphs(),
    ];
  }

  #glyphs() {
    const { loads, over, dead } = this.now;
    const { theme } = this;
    const marked = loads.map((_, e) => e).filter((e) => over[e] || dead[e]);
    const size = Math.min(13, Math.max(7, (0.9 * this.box.width) / loads.length));
    return {
      type: "scatter", mode: "text", hoverinfo: "skip", cliponaxis: false, textposition: "top center",
      x: marked, y: marked.map((e) => loads[e]), text: marked.map((e) => (dead[e] ? "✕" : "▲")),
      textfont: { size, color: marked.map((e) => (dead[e] ? theme.dropped : theme.text)) },
    };
  }

  pointed(x) {
    if (!this.now) return null;
    const expert = Math.floor(((x - this.box.left) / this.box.width) * this.now.loads.length);
    return { expert: Math.min(Math.max(expert, 0), this.now.loads.length - 1), panel: this };
  }

  clicked(x) {
    const expert = this.pointed(x)?.expert ?? -1;
    if (expert >= 0) this.page.view.select(expert);
  }

  showCursor() {
    const { hover } = this.page.view;
    const expert = hover?.expert ?? -1;
    const shown = Boolean(this.now && expert >= 0 && expert < this.now.loads.length);
    setHidden(this.cursor, !shown);
    if (!shown) return this.showReadout([], 0);
    const x = this.box.left + ((expert + 0.5) / this.now.loads.length) * this.box.width;
    Object.assign(this.cursor.style, { left: `${x}px`, top: `${this.box.top}px`, height: `${this.box.height}px` });
    return this.showReadout(hover.panel === this ? this.#readout(expert) : [], x);
  }

  #readout(expert) {
    const { loads, kept, mean, over, dead } = this.now;
    const lines = [`expert ${expert}: ${loads[expert]} tokens`, `${number(loads[expert] / mean)} × balanced (${fixed(mean, 0)})`];
    if (kept[expert] < loads[expert]) lines.push(`${loads[expert] - kept[expert]} of them dropped`);
    if (over[expert]) lines.push("above the fair band");
    if (dead[expert]) lines.push("dead: under 1 % of the mean load");
    return lines;
  }

  describe() {
    if (!this.now) return "No data yet.";
    const { loads, mean, over, dead, step } = this.now;
    const most = loads.indexOf(Math.max(...loads));
    return (
      `Expert load at step ${step}: expert ${most} is busiest with ${loads[most]} tokens, balanced would be ${fixed(mean, 0)}; ` +
      `${over.filter(Boolean).length} of ${loads.length} above the fair band, ${dead.filter(Boolean).length} dead.`
    );
  }
}

// Everything the bars show about the newest step, or null before there is one.
function facts(store, layer) {
  if (!store.count) return null;
  const index = store.count - 1;
  const start = store.row(index, layer);
  const loads = Array.from(store.load.subarray(start, start + store.experts));
  const kept = Array.from(store.kept_load.subarray(start, start + store.experts));
  const mean = perLayer(store, "mean_load", index, layer);
  const bandLow = mean * (store.fair_min_load_p05[index] || 0);
  const bandHigh = mean * (1 + (store.fair_max_vio_p95[index] || 0));
  const over = loads.map((load) => load > bandHigh);
  return { store, step: store.step[index], loads, kept, mean, bandLow, bandHigh, over, dead: deadExperts(store, index, layer) };
}

function groupNames(store, width, theme) {
  const { groups, size } = grouping(store);
  if (groups === 1 || width / groups < 14) return [];
  const long = width / groups > 56;
  return Array.from({ length: groups }, (_, i) => ({
    x: (i + 0.5) * size - 0.5, y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
    text: `${long ? "group " : "g"}${i}`, font: { size: 11, color: theme.muted },
  }));
}
