// A chart over steps: Plotly draws the axes and takes the drag that zooms, a canvas under it draws the data.
//
// What is drawn is a `kind`: {id, keys, extent(p), paint(p), readout(p, index), describe(p, index)} and where it makes
// sense {yAxis(store), note(p), expertAt(p, index, y), legend(p), log}. All get the frame `p`: store, view, visible
// entries and scales. `log` says that its values may stand on a logarithmic axis; `legend` names what the key's looks
// mean now, "" for one that is not drawn.

import { setHidden, setText } from "./dom.js";
import { drawMarks, markNear } from "./marks.js";
import { Panel } from "./panel.js";
import { LINEAR, LOG } from "./scale.js";
import { axis, title } from "./theme.js";
import { nearest } from "./view.js";

const STEP = "step";
const THINNED = "step (older ones thinned, extremes kept)";
const LOG_STEP = "step (log, no 0)";
const FAINT = 0.75; // how far what came after the shown moment goes back into the background
const HANDLE_PX = 5;

export class StepChart extends Panel {
  constructor(card, page, kind) {
    super(card, page);
    this.kind = kind;
    this.axisNow = [[0, 20], [0, 1]];
    this.axisTypes = ["linear", "linear"];
    this.stepTitle = STEP;
  }

  layout(theme) {
    const [x, y] = this.axisNow;
    const [xType, yType] = this.axisTypes;
    const steps = { range: [...x], type: xType, showgrid: false, nticks: 6, tickformat: ",d", title: title(theme, this.stepTitle) };
    const values = { range: [...y], type: yType, fixedrange: true, nticks: 5, tickformat: "~g", ...this.kind.yAxis?.(this.store), ...this.#ticks() };
    return { dragmode: "zoom", xaxis: axis(theme, steps), yaxis: axis(theme, values) };
  }

  // Draws if anything it shows has changed; returns whether it did.
  draw(store) {
    if (!this.drawable) return false;
    this.store = store;
    const p = this.#frame(store);
    const { view } = p;
    const same = [
      store.serial, p.end, store.step[p.end], p.range, p.layer, view.expert, this.kind.expertAt && p.hoverExpert, this.size,
      [...this.card.hidden], JSON.stringify(store.knobs), store.labels.size, view.at, view.smoothing, p.logValues, p.logSteps,
    ].join("|");
    if (same === this.drawnAs) return false;
    this.drawnAs = same;
    this.#scale(p, this.kind.extent(p));
    this.moveAxes();
    p.ctx = this.clear();
    this.#paint(p);
    this.showNote(this.kind.note?.(p) ?? "");
    this.#explain(p);
    return true;
  }

  // What the key and the unit say depends on how curves are smoothed and on the axis.
  #explain(p) {
    for (const [look, text] of Object.entries(this.kind.legend?.(p) ?? {})) {
      const entry = this.card.key.querySelector(`[data-look="${look}"]`);
      setHidden(entry, !text);
      setText(entry.querySelector(".says"), text);
    }
    setText(this.card.unit, [this.card.text.unit, p.logValues ? "log, no 0" : ""].filter(Boolean).join(" · "));
  }

  #frame(store) {
    const { view } = this.page;
    const { box } = this;
    const [low, high] = view.range(store);
    const range = view.logSteps ? [Math.max(low, 1), Math.max(high, 2)] : [low, high];
    const scale = view.logSteps ? LOG : LINEAR;
    const end = view.end(store);
    let first = Math.max(store.indexOf(range[0]), 0);
    if (view.logSteps && store.step[first] < 1) first += 1;
    return {
      store, view, range, box, first, end, theme: this.theme, hidden: this.card.hidden,
      last: Math.min(store.indexOf(range[1]) + 1, end),
      moment: view.index(store),
      at: view.at === null ? Infinity : store.step[view.index(store)],
      logSteps: view.logSteps,
      logValues: Boolean(view.logValues && this.kind.log),
      layer: Math.min(view.layer, store.layers - 1),
      hoverExpert: view.hover?.expert ?? -1,
      x: (step) => box.left + scale.share(step, ...range) * box.width,
      stepAt: (x) => scale.at((x - box.left) / box.width, ...range),
    };
  }

  #scale(p, [low, high]) {
    const scale = p.logValues ? LOG : LINEAR;
    p.y = (value) => p.box.bottom - scale.share(value, low, high) * p.box.height;
    this.axisNow = [p.logSteps ? p.range.map(Math.log10) : [...p.range], p.logValues ? [low, high].map(Math.log10) : [low, high]];
    this.axisTypes = [p.logSteps, p.logValues].map((log) => (log ? "log" : "linear"));
    this.stepTitle = p.logSteps ? LOG_STEP : p.store.hasGaps(p.first, p.last) ? THINNED : STEP;
    this.frame = p;
  }

  moving() {
    const [x, y] = this.axisNow;
    const [xType, yType] = this.axisTypes;
    const ticks = Object.entries(this.#ticks()).map(([name, value]) => [`yaxis.${name}`, value]);
    return {
      "xaxis.range": [...x], "yaxis.range": [...y], "xaxis.title.text": this.stepTitle, "xaxis.type": xType, "yaxis.type": yType,
      ...Object.fromEntries(ticks),
    };
  }

  // Where the vertical axis has its numbers: everywhere as told, or where Plotly sees fit.
  #ticks() {
    if (this.axisTypes[1] === "log") return { tickmode: "array", tickvals: logTicks(...this.axisNow[1]) };
    const dtick = this.kind.yAxis?.(this.store)?.dtick;
    return dtick ? { tickmode: "linear", dtick } : { tickmode: "auto" };
  }

  #paint(p) {
    const { ctx, box } = p;
    ctx.save();
    ctx.beginPath();
    // What lies on the first or the newest step is shown whole; elsewhere the data go on beyond the edge.
    const left = p.range[0] === 0 ? 5 : 0;
    const right = p.range[1] >= p.store.step[p.end] ? 5 : 0;
    ctx.rect(box.left - left, box.top, left + box.width + right, box.height);
    ctx.clip();
    if (p.store.count) this.kind.paint(p);
    if (p.at < Infinity) this.#moment(p, box.right + right);
    ctx.restore();
    drawMarks(p);
  }

  // The moment that is shown: a line with a handle; what came after it is faint.
  #moment({ ctx, box, theme, x, at }, right) {
    const place = Number.isFinite(x(at)) ? x(at) : box.left;
    ctx.fillStyle = theme.background;
    ctx.globalAlpha = FAINT;
    ctx.fillRect(place, box.top, right - place, box.height);
    ctx.globalAlpha = 1;
    ctx.fillStyle = theme.text;
    ctx.fillRect(place - 0.75, box.top, 1.5, box.height);
    ctx.beginPath();
    ctx.moveTo(place - HANDLE_PX, box.top);
    ctx.lineTo(place + HANDLE_PX, box.top);
    ctx.lineTo(place, box.top + 1.5 * HANDLE_PX);
    ctx.closePath();
    ctx.fill();
  }

  // A person dragged: Plotly reports the edges one by one, our own changes come as a whole range.
  relaid(change) {
    const [low, high] = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
    if (low === undefined || high === undefined) return;
    this.#zoomTo(...(this.axisTypes[0] === "log" ? [10 ** low, 10 ** high] : [low, high]));
  }

  #zoomTo(low, high) {
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
    const index = Math.min(nearest(store, p.stepAt(x)), p.end);
    return { step: store.step[index], expert: this.kind.expertAt?.(p, index, y) ?? -1, panel: this };
  }

  clicked(x, y) {
    const expert = this.pointed(x, y)?.expert ?? -1;
    if (expert >= 0) this.page.view.select(expert);
  }

  // The same step on every chart: a line, and the values there. Without a pointer, the values of the shown moment.
  showCursor() {
    const { hover, at } = this.page.view;
    const p = this.frame;
    const step = hover?.step ?? (hover ? null : at);
    const shown = Boolean(step !== null && p?.store.count && step >= p.range[0] && step <= p.range[1]);
    setHidden(this.cursor, !shown || !hover);
    if (!shown) return this.showReadout([], 0);
    const x = p.x(step);
    Object.assign(this.cursor.style, { left: `${x}px`, top: `${p.box.top}px`, height: `${p.box.height}px` });
    const index = nearest(p.store, step);
    const mark = markNear(p.store, step, p.stepAt(x + 4) - step);
    const lines = [`step ${p.store.step[index]}`, ...this.kind.readout(p, index)];
    if (mark && hover?.panel === this) lines.push(`changed at ${mark.step}: ${p.store.markText(mark)}`);
    return this.showReadout(lines, x);
  }

  describe() {
    return this.frame?.store.count ? this.kind.describe(this.frame, this.page.view.index(this.frame.store)) : "No data yet.";
  }
}

// Of 1, 2, 5 times the powers of ten between two of them as many as have room; Plotly's own would lie on each other.
function logTicks(low, high) {
  const factors = high - low < 1.2 ? [1, 2, 3, 5] : high - low < 3 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power++) for (const factor of factors) ticks.push(Number(`${factor}e${power}`));
  return ticks.filter((tick) => Math.log10(tick) >= low - 1e-9 && Math.log10(tick) <= high + 1e-9);
}
