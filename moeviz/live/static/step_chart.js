// A chart over steps: Plotly draws the axes and takes the drag that zooms, a canvas under it draws the data.
//
// What is drawn is a `kind`: {id, keys, extent(p), paint(p), readout(p, index), describe(p, index)} and where it makes
// sense {yAxis(store), note(p), expertAt(p, index, y)}. All get the frame `p`: store, view, visible entries and scales.

import { setHidden } from "./dom.js";
import { drawMarks, markNear } from "./marks.js";
import { Panel } from "./panel.js";
import { axis, title } from "./theme.js";

const STEP = "step";
const THINNED = "step (older ones thinned, extremes kept)";

export class StepChart extends Panel {
  constructor(card, page, kind) {
    super(card, page);
    this.kind = kind;
    this.axisNow = [[0, 20], [0, 1]];
    this.stepTitle = STEP;
  }

  layout(theme) {
    const [x, y] = this.axisNow;
    return {
      dragmode: "zoom",
      xaxis: axis(theme, { range: [...x], showgrid: false, nticks: 6, tickformat: ",d", title: title(theme, this.stepTitle) }),
      yaxis: axis(theme, { range: [...y], fixedrange: true, nticks: 5, tickformat: "~g", ...this.kind.yAxis?.(this.store) }),
    };
  }

  // Draws if anything it shows has changed; returns whether it did.
  draw(store) {
    if (!this.drawable) return false;
    this.store = store;
    const p = this.#frame(store);
    const same = [
      store.serial, store.count, store.lastStep, p.range, p.layer, p.view.expert, this.kind.expertAt && p.hoverExpert, this.size,
      [...this.card.hidden], JSON.stringify(store.knobs), store.labels.size,
    ].join("|");
    if (same === this.drawnAs) return false;
    this.drawnAs = same;
    this.#scale(p, this.kind.extent(p));
    this.moveAxes();
    p.ctx = this.clear();
    this.#paint(p);
    this.showNote(this.kind.note?.(p) ?? "");
    return true;
  }

  #frame(store) {
    const { view } = this.page;
    const range = view.range(store);
    const { box } = this;
    const first = Math.max(store.indexOf(range[0]), 0);
    const last = Math.min(store.indexOf(range[1]) + 1, store.count - 1);
    return {
      store, view, range, box, first, last, theme: this.theme, hidden: this.card.hidden,
      layer: Math.min(view.layer, store.layers - 1),
      hoverExpert: view.hover?.expert ?? -1,
      x: (step) => box.left + ((step - range[0]) / (range[1] - range[0])) * box.width,
    };
  }

  #scale(p, [low, high]) {
    p.y = (value) => p.box.bottom - ((value - low) / (high - low)) * p.box.height;
    this.axisNow = [[...p.range], [low, high]];
    this.stepTitle = p.store.hasGaps(p.first, p.last) ? THINNED : STEP;
    this.frame = p;
  }

  moving() {
    const [x, y] = this.axisNow;
    const ticks = this.kind.yAxis?.(this.store)?.dtick;
    const moving = { "xaxis.range": [...x], "yaxis.range": [...y], "xaxis.title.text": this.stepTitle };
    return ticks ? { ...moving, "yaxis.dtick": ticks } : moving;
  }

  #paint(p) {
    const { ctx, box } = p;
    ctx.save();
    ctx.beginPath();
    // What lies on the first or the newest step is shown whole; elsewhere the data go on beyond the edge.
    const left = p.range[0] === 0 ? 5 : 0;
    const right = p.range[1] >= p.store.lastStep ? 5 : 0;
    ctx.rect(box.left - left, box.top, left + box.width + right, box.height);
    ctx.clip();
    if (p.store.count) this.kind.paint(p);
    ctx.restore();
    drawMarks(p);
  }

  // A person dragged: Plotly reports the edges one by one, our own changes come as a whole range.
  relaid(change) {
    const [low, high] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (low === undefined || high === undefined) return;
    const middle = (low + high) / 2;
    const half = Math.max((high - low) / 2, 2);
    delete this.laid["xaxis.range"]; // Plotly's axis stands where the drag left it
    this.drawnAs = "";
    this.page.view.set({ zoom: [Math.max(0, Math.floor(middle - half)), Math.ceil(middle + half)] });
  }

  // The step and, where the chart has one, the expert under the pointer.
  pointed(x, y) {
    const { store, frame: p } = this;
    if (!p || !store.count) return null;
    const step = p.range[0] + ((x - p.box.left) / p.box.width) * (p.range[1] - p.range[0]);
    let index = Math.max(store.indexOf(step), 0);
    if (index + 1 < store.count && store.step[index + 1] - step < step - store.step[index]) index += 1;
    return { step: store.step[index], expert: this.kind.expertAt?.(p, index, y) ?? -1, panel: this };
  }

  clicked(x, y) {
    const expert = this.pointed(x, y)?.expert ?? -1;
    if (expert >= 0) this.page.view.select(expert);
  }

  // The same step on every chart: a line, and the values there.
  showCursor() {
    const { hover } = this.page.view;
    const p = this.frame;
    const shown = Boolean(hover && hover.step !== undefined && p?.store.count && hover.step >= p.range[0] && hover.step <= p.range[1]);
    setHidden(this.cursor, !shown);
    if (!shown) return this.showReadout([], 0);
    const x = p.x(hover.step);
    Object.assign(this.cursor.style, { left: `${x}px`, top: `${p.box.top}px`, height: `${p.box.height}px` });
    const index = Math.max(p.store.indexOf(hover.step), 0);
    const mark = markNear(p.store, hover.step, (4 * (p.range[1] - p.range[0])) / p.box.width);
    const lines = [`step ${p.store.step[index]}`, ...this.kind.readout(p, index)];
    if (mark && hover.panel === this) lines.push(`changed at ${mark.step}: ${p.store.markText(mark)}`);
    return this.showReadout(lines, x);
  }

  describe() {
    return this.frame?.store.count ? this.kind.describe(this.frame, this.frame.store.count - 1) : "No data yet.";
  }
}
