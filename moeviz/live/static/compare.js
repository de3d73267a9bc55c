// The charts of the page that compares: a column for each twin, and charts that all share.

import { ChartsPage } from "./charts_page.js";
import { ComparePage } from "./compare_page.js";
import { Lanes } from "./lanes.js";
import { loadStyles, mounting, nameInAddress } from "./page_parts.js";
import { CommonScale, TwinBars } from "./twin_bars.js";
import { TwinChart } from "./twin_chart.js";
import { TwinHeat } from "./twin_heat.js";
import { twinKinds } from "./twin_lines.js";
import { TwinsView } from "./twins_view.js";

class Compare extends ChartsPage {
  constructor({ parentElement, data }) {
    super();
    this.view = new TwinsView(() => this.changed(), () => this.lanes.face);
    const branch = data.branch ? (step) => this.branch(step) : null;
    this.frame = new ComparePage(parentElement, data.charts, this.view, { branch, panels: () => this.panels });
    this.scale = new CommonScale();
    this.columns = new Map(); // by twin: {head, bars, heat, panels}
    this.charts = [];
    this.connect(data);
  }

  // Styles, then the shared charts; columns come with their twins.
  async begin({ base, version }) {
    await loadStyles(this.frame.root, ["style.css", "compare.css"].map((name) => `${base}/${name}?v=${version}`));
    for (const kind of twinKinds(() => this.lanes, this.view)) {
      const card = this.frame.card(kind.id);
      this.frame.fillKey(card, kind.keys);
      if (kind.id === "difference") this.frame.offerFigures(card);
      this.charts.push(new TwinChart(card, this.shared, kind));
    }
  }

  get panels() {
    return [...this.charts, ...[...this.columns.values()].flatMap(({ panels }) => panels)];
  }

  // Columns draw their own axes.
  get withAxes() {
    return this.charts;
  }

  get face() {
    return this.lanes?.face;
  }

  get twin() {
    return this.view.twin;
  }

  follow(token) {
    super.follow(token);
    this.lanes = new Lanes();
  }

  address() {
    const address = this.addressOf("/twins");
    address.search = new URLSearchParams({ known: JSON.stringify(this.lanes.known()) });
    return address;
  }

  async receive(buffer) {
    nameInAddress(this.token); // again and again: Streamlit writes addresses of its own
    await this.ready; // a chart made before the styles would have the wrong size
    const { lanes } = this;
    const before = lanes.epoch;
    const { header, rows } = lanes.take(buffer);
    this.header = header;
    if (before !== header.epoch) this.view.begin();
    this.#matchColumns();
    this.agreement.check(this.component.data.known, header);
    this.drawNow();
    const { playing, status, catching_up: catchingUp } = header;
    return { drawMs: this.drawMs, busy: playing || rows > 0 || status === "starting" || Boolean(catchingUp) };
  }

  // A column for each twin that is there, and none for one that is gone. In another beginning all are made anew.
  #matchColumns() {
    let added = false;
    for (const [id, column] of this.columns) {
      if (this.lanes.byId(id)?.store !== column.store) this.#dropColumn(id);
    }
    for (const lane of this.lanes.all) {
      if (this.columns.has(lane.id)) continue;
      this.#addColumn(lane);
      added = true;
    }
    if (added) for (const { id } of this.lanes.all) this.frame.putLast(this.columns.get(id));
    if (!this.lanes.byId(this.view.twin)) this.view.twin = this.lanes.base?.id ?? 0;
  }

  #addColumn(lane) {
    const column = this.frame.column(lane, (twin) => this.#choose(twin));
    const panels = [
      new TwinBars(column.bars, this.shared, this.scale), new TwinHeat(column.heat, this.shared),
    ];
    if (this.theme) for (const panel of panels) panel.wear(this.theme);
    this.columns.set(lane.id, { ...column, panels, store: lane.store });
  }

  #dropColumn(id) {
    const column = this.columns.get(id);
    for (const panel of column.panels) panel.dispose();
    this.frame.remove(column);
    this.columns.delete(id);
  }

  #choose(twin) {
    this.view.set({ twin });
  }

  // Turns knobs of the run itself; whether that succeeded.
  async write(knobs) {
    const { epoch, version } = this.header;
    const answer = await this.postKnobs({ epoch, version, after: this.face.lastStep }, knobs);
    if (answer) this.pulling.wake(); // the twins' own answer has it all
    return answer?.status === 200;
  }

  paint() {
    const { lanes, frame } = this;
    frame.draw(lanes, this.header);
    frame.toolbar.draw(lanes.face, this.messages());
    frame.drawTime(lanes);
    this.#drawHeads();
    // While the mouse button is down Plotly is drawing a zoom box, which a redraw would tear away.
    return this.held ? 0 : this.#drawCharts();
  }

  #drawHeads() {
    const nameOf = (id) => this.lanes.byId(id)?.name ?? "a twin that is gone";
    for (const lane of this.lanes.all) {
      const { head, bars, heat } = this.columns.get(lane.id);
      head.draw(lane, this.view.index(lane.store), this.view, nameOf);
      for (const { root } of [bars, heat]) root.classList.toggle("still", Boolean(lane.said.diverged));
    }
  }

  #drawCharts() {
    const { lanes, view } = this;
    // What the charts cannot see by themselves: who is chosen, and which figure.
    const seen = `${view.twin} ${view.figure}`;
    if (seen !== this.seenBefore) for (const chart of this.charts) chart.drawnAs = "";
    this.seenBefore = seen;
    const rescaled = this.scale.over(Math.max(...lanes.all.map(({ store }) => highestLoad(store, view))));
    let count = 0;
    for (const chart of this.charts) count += chart.draw(lanes.face);
    for (const { id, store, bare } of lanes.all) {
      const [bars, heat] = this.columns.get(id).panels;
      if (rescaled) bars.drawnAs = "";
      count += bars.draw(store) + heat.draw(bare);
    }
    return count;
  }

  seen() {
    const { lanes, charts, columns } = this;
    return { charts, columns, twins: lanes.all, marks: lanes.face.marks, scale: this.scale.range };
  }
}

// The highest bar, or end of the fair band, that a twin's chart shows.
function highestLoad(store, view) {
  const index = view.index(store);
  if (index < 0) return 0;
  const layer = Math.min(view.layer, store.layers - 1);
  const start = store.row(index, layer);
  const mean = store.mean_load[index * store.layers + layer];
  let highest = mean * (1 + (store.fair_max_vio_p95[index] || 0));
  for (let e = 0; e < store.experts; e++) highest = Math.max(highest, store.load[start + e]);
  return highest;
}

const page = mounting(Compare);
export const render = page.render;
export const release = page.release;
