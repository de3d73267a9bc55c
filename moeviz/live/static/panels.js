// The panels of a sweep: one for each value, all with the same axes, redrawn in place while the sweep fills them.

import { el, setText } from "./dom.js";
import { loadStyles, mounting } from "./page_parts.js";
import { loadPlotly } from "./plotly.js";
import { axis, baseLayout, readTheme, title } from "./theme.js";

const DASHES = ["solid", "dash", "dot", "dashdot"]; // of seeds: told apart without colour
const MARGIN = { l: 46, r: 6, t: 6, b: 22 };
const HALVES = [[0.56, 1], [0, 0.44]]; // MaxVio above, task loss below

class Panels {
  constructor({ parentElement, data }) {
    this.grid = el("div", { class: "panels" });
    this.root = el("div", { class: "moeviz" }, this.grid);
    parentElement.append(this.root);
    this.panels = [];
    this.sizes = new ResizeObserver(() => this.draw());
    this.sizes.observe(this.root);
    this.ready = Promise.all([
      loadStyles(this.root, [`${data.base}/style.css?v=${data.version}`]),
      loadPlotly(`${data.base}/../plotly.min.js?v=${data.version}`),
    ]);
  }

  async update({ data }) {
    this.data = data;
    try {
      await this.ready;
      this.draw();
    } catch (error) {
      this.root.replaceChildren(el("p", { role: "alert" }, `The panels could not be drawn. ${error.message}`));
    }
  }

  draw() {
    if (!window.Plotly || !this.root.isConnected) return;
    const { panels, wide } = this.data;
    this.grid.style.setProperty("--wide", fitting(this.root.clientWidth, wide));
    while (this.panels.length > panels.length) this.panels.pop().dispose();
    while (this.panels.length < panels.length) this.panels.push(new Panel(this.grid));
    const theme = readTheme(this.root);
    this.panels.forEach((panel, i) => panel.draw(panels[i], this.data, theme));
  }

  dispose() {
    this.sizes.disconnect();
    while (this.panels.length) this.panels.pop().dispose();
    this.root.remove();
  }
}

function fitting(width, wide) {
  if (width >= 780) return wide;
  return width >= 460 ? 2 : 1;
}

class Panel {
  constructor(grid) {
    this.heading = el("b");
    this.note = el("span", { class: "unit" });
    this.plot = el("div", { class: "plot" });
    this.node = el("figure", {}, el("figcaption", {}, this.heading, " ", this.note), this.plot);
    grid.append(this.node);
  }

  draw(panel, { shared, name }, theme) {
    const { clientWidth: width, clientHeight: height } = this.plot;
    const wanted = JSON.stringify([panel, shared, theme, width, height]);
    if (wanted === this.drawnAs || !width) return;
    this.drawnAs = wanted;
    this.paper = theme.background;
    setText(this.heading, panel.label);
    setText(this.note, panel.note);
    this.plot.setAttribute("role", "img");
    this.plot.setAttribute("aria-label", inWords(panel));
    const layout = { ...layoutOf(panel, shared, theme), width, height };
    window.Plotly.react(this.plot, traces(panel, theme), layout, this.#config(`${name}-${panel.label}`));
  }

  #config(filename) {
    const { Icons } = window.Plotly;
    const button = (format, icon) => ({
      name: format, title: `Download as ${format.toUpperCase()}`, icon, click: () => this.#download(format, filename),
    });
    const modeBarButtons = [[button("png", Icons.camera), button("svg", Icons.disk)]];
    return { displaylogo: false, showTips: false, displayModeBar: "hover", modeBarButtons };
  }

  // With the heading, which on the page stands outside.
  #download(format, filename) {
    const { data, layout } = this.plot;
    const text = `<b>${this.heading.textContent}</b>  ${this.note.textContent}`;
    const heading = { text, x: 0.02, xanchor: "left", y: 1, yanchor: "top", pad: { t: 6 }, font: { size: 14 } };
    const size = { width: layout.width, height: layout.height + 24 };
    const margin = { ...layout.margin, t: layout.margin.t + 24 };
    const figure = { data, layout: { ...layout, ...size, margin, title: heading, paper_bgcolor: this.paper } };
    window.Plotly.downloadImage(figure, { format, ...size, scale: format === "png" ? 2 : 1, filename });
  }

  dispose() {
    window.Plotly?.purge(this.plot);
    this.node.remove();
  }
}

function traces({ lines }, theme) {
  const kinds = [["max_vio", theme.line, "y"], ["task_loss", theme.heldOut, "y2"]];
  return lines.flatMap(({ seed, step, ...values }, number) => kinds.map(([figure, color, yaxis]) => ({
    type: "scatter", mode: "lines", x: step, y: values[figure], yaxis, name: `seed ${seed}`, hovertemplate: "%{y:.3g}",
    line: { color, width: 1.4, dash: DASHES[number % DASHES.length] },
  })));
}

function layoutOf({ floor }, shared, theme) {
  const line = { color: theme.muted, width: 1, dash: "dash" };
  const floorLine = { type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: floor, y1: floor, line };
  const upwards = (text, range, domain) => axis(theme, { title: title(theme, text), range, domain, nticks: 4, fixedrange: true });
  return {
    ...baseLayout(theme, MARGIN),
    hovermode: "x unified",
    hoverlabel: { align: "left", bgcolor: theme.card, bordercolor: theme.axis, font: { color: theme.text } },
    xaxis: axis(theme, { range: shared.steps, nticks: 4, anchor: "y2", fixedrange: true }),
    yaxis: upwards("MaxVio", shared.max_vio, HALVES[0]),
    yaxis2: upwards("task loss", shared.task_loss, HALVES[1]),
    shapes: floor === null ? [] : [floorLine],
  };
}

// For who hears the page.
function inWords({ label, note, lines }) {
  const last = lines.map(({ seed, step, max_vio, task_loss }) =>
    `seed ${seed} at step ${step.at(-1)}: MaxVio ${max_vio.at(-1)}, task loss ${task_loss.at(-1)}`);
  return [label, note, ...last].filter(Boolean).join("; ") || label;
}

const page = mounting(Panels);
export const render = page.render;
export const release = page.release;
