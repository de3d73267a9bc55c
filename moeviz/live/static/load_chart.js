// Expert load now: a bar per expert, the part that was dropped hatched on top, before the band of a fair router.
//
// Over-used experts have a dark outline and a ▲, dead ones a ✕, the selected one a thick frame: never the hue alone.

import { clipTo, hatching, lineAcross, outlined } from "./bars.js";
import { setHidden, setText } from "./dom.js";
import { deadExperts, expertTicks, grouping, perLayer } from "./facts.js";
import { Panel } from "./panel.js";
import { Extent } from "./scale.js";
import { axis, title } from "./theme.js";
import { fixed, number } from "./words.js";

const BAR = 0.84; // of the distance between two
const SELECTED = 3; // px, thickness of its frame

export class LoadChart extends Panel {
  constructor(card, page) {
    super(card, page);
    this.extent = new Extent();
    this.onTop = true; // bars hide the grid
    this.axes.after(this.canvas);
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

  get experts() {
    return this.store?.experts ?? 16;
  }

  layout(theme) {
    const moving = this.moving();
    return {
      dragmode: false,
      xaxis: axis(theme, {
        range: moving["xaxis.range"], fixedrange: true, showgrid: false, dtick: moving["xaxis.dtick"], tick0: 0,
        title: title(theme, "expert"),
      }),
      yaxis: axis(theme, { range: moving["yaxis.range"], fixedrange: true, nticks: 5, tickformat: ",d" }),
    };
  }

  moving() {
    const { experts } = this;
    return {
      "xaxis.range": [-0.5, experts - 0.5], "xaxis.dtick": expertTicks(experts), "yaxis.range": [...this.extent.range],
    };
  }

  draw(store) {
    if (!this.drawable) return false;
    this.store = store;
    const { view } = this.page;
    const layer = Math.min(view.layer, store.layers - 1);
    const index = view.index(store);
    const { at, until } = view;
    const same = [store.serial, store.step[index], layer, view.expert, this.size, JSON.stringify(store.knobs), at, until].join("|");
    if (same === this.drawnAs) return false;
    this.drawnAs = same;
    this.now = facts(store, index, layer);
    setText(this.card.title, at === null && until === null ? this.card.text.title : `Expert load at step ${this.now?.step ?? 0}`);
    if (this.now) this.extent.fit(0, Math.max(...this.now.loads, this.now.bandHigh) * 1.1);
    this.moveAxes();
    this.#offerDropped();
    const ctx = this.clear();
    if (this.now) this.#paint(ctx);
    return true;
  }

  #paint(ctx) {
    const { box, theme } = this;
    const { loads, mean, bandLow, bandHigh } = this.now;
    ctx.save();
    clipTo(ctx, box);
    ctx.fillStyle = theme.band;
    ctx.fillRect(box.left, this.#y(bandHigh), box.width, this.#y(bandLow) - this.#y(bandHigh));
    this.#bars(ctx);
    this.#dropped(ctx);
    ctx.restore();
    this.#glyphs(ctx, Math.min(13, Math.max(7, (0.9 * box.width) / loads.length)));
    lineAcross(ctx, { color: theme.text, width: 1.5, dash: 9 }, [box.left, this.#y(mean)], [box.right, this.#y(mean)]);
    this.#groups(ctx);
  }

  // Where a place between experts and a load are on the canvas.
  #x(expert) {
    return this.box.left + ((expert + 0.5) / this.experts) * this.box.width;
  }

  #y(load) {
    const [bottom, top] = this.extent.range;
    return this.box.bottom - ((load - bottom) / (top - bottom)) * this.box.height;
  }

  // The bar of an expert between two loads: x, y, width, height.
  #rectangle(expert, from, to) {
    const left = this.#x(expert - BAR / 2);
    return [left, this.#y(to), this.#x(expert + BAR / 2) - left, this.#y(from) - this.#y(to)];
  }

  // Any load can be seen, be it as thin as a pixel.
  #bars(ctx) {
    const { loads, kept, over } = this.now;
    const { theme } = this;
    const { expert: selected } = this.page.view;
    const rim = loads.length > 32 ? 0.75 : 1.5;
    for (let e = 0; e < loads.length; e++) {
      const [x, y, width, height] = this.#rectangle(e, 0, kept[e]);
      const thickness = e === selected ? SELECTED : over[e] ? rim : 0;
      const thin = height > 0 && height < 2 && !thickness;
      const bar = thin ? [x, Math.floor(y), width, this.box.bottom - Math.floor(y)] : [x, y, width, height];
      outlined(ctx, bar, over[e] ? theme.barOver : theme.bar, e === selected ? theme.select : theme.edge, thickness, this.scale);
    }
  }

  #dropped(ctx) {
    const { loads, kept } = this.now;
    const bars = [];
    loads.forEach((load, e) => load > kept[e] && bars.push(this.#rectangle(e, kept[e], load)));
    hatching(ctx, this.box, bars, this.theme.dropped, this.scale);
  }

  #glyphs(ctx, size) {
    const { loads, over, dead } = this.now;
    ctx.font = `${size}px ${this.theme.font}`;
    ctx.textAlign = "center";
    ctx.textBaseline = "alphabetic";
    for (let e = 0; e < loads.length; e++) {
      if (!over[e] && !dead[e]) continue;
      ctx.fillStyle = dead[e] ? this.theme.dropped : this.theme.text;
      ctx.fillText(dead[e] ? "✕" : "▲", this.#x(e), this.#y(loads[e]) - size / 4);
    }
  }

  // Lines between the groups of experts, and their names above.
  #groups(ctx) {
    const { groups, size } = grouping(this.store, this.now.knobs);
    const { box, theme } = this;
    for (let group = 1; group < groups; group++) {
      const x = this.#x(group * size - 0.5);
      lineAcross(ctx, { color: theme.muted, width: 1, dash: 3 }, [x, box.bottom], [x, box.top - 0.08 * box.height]);
    }
    if (groups === 1 || box.width / groups < 14) return;
    const word = box.width / groups > 56 ? "group " : "g";
    Object.assign(ctx, { font: `11px ${theme.font}`, textAlign: "center", textBaseline: "alphabetic", fillStyle: theme.muted });
    for (let group = 0; group < groups; group++) ctx.fillText(`${word}${group}`, this.#x((group + 0.5) * size - 0.5), box.top - 6);
  }

  // The hatching is explained only where there can be any.
  #offerDropped() {
    const dropping = (this.now?.knobs?.token_dropping ?? "none") !== "none";
    const entry = this.card.key.querySelector('[data-look="hatch"]');
    setHidden(entry, !dropping && !this.now?.loads.some((load, e) => load > this.now.kept[e]));
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

// Everything the bars show about one entry, or null before there is any.
function facts(store, index, layer) {
  if (index < 0) return null;
  const start = store.row(index, layer);
  const loads = Array.from(store.load.subarray(start, start + store.experts));
  const kept = Array.from(store.kept_load.subarray(start, start + store.experts));
  const mean = perLayer(store, "mean_load", index, layer);
  const bandLow = mean * (store.fair_min_load_p05[index] || 0);
  const bandHigh = mean * (1 + (store.fair_max_vio_p95[index] || 0));
  const over = loads.map((load) => load > bandHigh);
  const [step, knobs, dead] = [store.step[index], store.knobsAt(index), deadExperts(store, index, layer)];
  return { store, step, knobs, loads, kept, mean, bandLow, bandHigh, over, dead };
}
