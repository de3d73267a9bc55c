// Charts on a page of their own, with colours that are called like their roles.

import { element } from "./page.js";

import { Page } from "../../moeviz/live/static/page.js";
import { StepChart } from "../../moeviz/live/static/step_chart.js";
import { View } from "../../moeviz/live/static/view.js";

export const BOX = { left: 46, right: 388, top: 16, bottom: 166, width: 342, height: 150 }; // inside the margins
const OTHER = { map: [0, 1], dark: false, font: "sans" };
export const THEME = new Proxy(OTHER, { get: (known, name) => known[name] ?? name });

const text = (title) => ({ title, unit: "unit", meaning: "", formula: "", source: "" });

// A card for one chart, its view, and what charts share.
export function card(id, view = new View(() => {})) {
  const frame = new Page(element("main"), { numbers: {}, charts: { [id]: text(`Title of ${id}`) } }, view);
  return { frame, card: frame.card(id), shared: { Plotly: null, view, changed() {} }, view };
}

const USUAL = { smoothing: null, logValues: false, logSteps: false }; // views remember how the last one drew

// A chart over steps that shows a store.
export function chartOf(kind, store, more = {}) {
  const { frame, card: place, shared, view } = card(kind.id);
  const chart = new StepChart(place, shared, kind);
  frame.fillKey(place, kind.keys);
  Object.assign(view, USUAL, more);
  chart.wear(THEME);
  chart.draw(store);
  return { chart, view, card: place, ctx: chart.canvas.getContext("2d") };
}

// What is stroked in a colour since the canvas was cleared last: a list of lines, each a list of points.
export function lines(ctx, color) {
  const found = [];
  let path = [];
  for (const { name, given, strokeStyle } of ctx.calls) {
    if (name === "clearRect") found.length = 0;
    if (name === "beginPath") path = [];
    if (name === "moveTo" || name === "lineTo") path.push(given);
    if (name === "stroke" && strokeStyle === color) found.push(path);
  }
  return found;
}

// Which entries of a chart's key are shown, and what they say.
export function key(place) {
  const shown = place.key.children.filter(({ hidden }) => !hidden);
  return Object.fromEntries(shown.map((entry) => [entry.dataset.look, entry.textContent]));
}
