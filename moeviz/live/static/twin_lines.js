// The charts that all twins share: one line each, in the twin's look, with its letter at the end.
//
// Kinds for TwinChart. The store that they get stands for all twins (lanes.js); their own are asked one by one.

import { apart, area, label, line } from "./brush.js";
import { Extents } from "./scale.js";
import { weightText } from "./smoothing.js";
import { figureOf, minus, WEIGHTS } from "./twin_figures.js";
import { lookOf, symbolOf } from "./twin_look.js";
import { number, percent } from "./words.js";

const FAINT = "50"; // opacity, as in a colour's last two digits
const NAMES = { loss: "task loss", max_vio: "MaxVio" };
const ALONE = "Add a twin to compare with A.";
const percents = (value) => percent(value / 100);

// The six charts, in the order in which they stand. `lanes()` are the twins.
export function twinKinds(lanes, view) {
  const difference = {
    id: "difference", others: true, note: ALONE, zero: true, under: zeroLine,
    weighs: () => WEIGHTS[view.figure](view),
    words: () => `Difference from A, ${NAMES[view.figure]}`,
    figure: (q) => minus(q, lanes().base.store, view.figure),
    ends: (p) => (lanes().all.length < 2 ? [] : [{ lane: lanes().base, x: p.x(p.store.step[p.last]), y: p.y(0) }]),
  };
  return [
    plain("max_vio", {
      log: true, zero: true, words: "MaxVio", under: fairBand, over: fairMean, also: (p) => p.store.fair_max_vio_p95,
      keys: [{ look: "band", text: "fair router" }],
    }),
    plain("loss", { log: true, words: "Task loss" }),
    difference,
    plain("spread", {
      zero: true, words: "Spread of the selection bias", note: "No twin has a bias: nobody balances loss‑free.",
      off: ({ knobs }) => knobs?.bias_rule === "none",
    }),
    plain("dropped", {
      log: true, zero: true, words: "Dropped pairs", show: percents, note: "Nothing is dropped: token dropping is off.",
      off: ({ knobs }) => knobs?.token_dropping === "none",
    }),
    plain("routed", { zero: true, words: "Tokens routed differently from A", show: percents, others: true, note: ALONE }),
  ].map((of) => kind(lanes, view, of));
}

function plain(id, more) {
  return { id, figure: (q) => figureOf(q, id), weighs: (view) => WEIGHTS[id](view), ...more };
}

function kind(lanes, view, of) {
  const extents = new Extents();
  const show = of.show ?? number;
  const weight = () => of.weighs(view);
  let frames = []; // of the last drawing
  return {
    id: of.id,
    log: of.log,
    keys: [...(of.keys ?? []), { look: "strong", text: "smoothed" }],
    legend: () => ({ strong: weight() ? weightText(weight()) : "" }),
    extent(p) {
      frames = framesOf(p, lanes(), of);
      return fitted(extents, p, frames, of);
    },
    paint(p) {
      of.under?.(p);
      for (const q of frames) if (q.faint) line(at(p, q), q.faint, { color: q.look.color + FAINT, width: 1 });
      of.over?.(p);
      for (const q of frames) strongLine(at(p, q));
    },
    letters(p) {
      if (!silent(frames, of)) letters(p, [...(of.ends?.(p) ?? []), ...frames.flatMap((q) => endOf(p, q))]);
    },
    note(p) {
      if (!p.store.count) return "";
      return (of.others ? lanes().all.length < 2 : silent(frames, of)) ? of.note : "";
    },
    readout: (p, i) => inOrder(frames).map((q) => `${q.lane.name}  ${show(valueAt(q, p.store.step[i]))}`),
    describe: (p, i) => described(p, i, frames, { of, show, weight: weight() }),
  };
}

// The frame of each twin: `p` with its own store, entries, look and figure. The chosen one comes last, on top.
function framesOf(p, lanes, { figure, others }) {
  const shown = lanes.all.filter((lane) => lane.store.count && !(others && lane === lanes.base));
  shown.sort((a, b) => (a.id === p.view.twin) - (b.id === p.view.twin));
  return shown.map((lane) => {
    const { store } = lane;
    const end = p.view.end(store);
    const first = Math.max(store.indexOf(p.range[0]), 0);
    const last = Math.min(store.indexOf(p.range[1]) + 1, end);
    const q = { ...p, lane, store, first, last, end, look: lookOf(lane, p.theme) };
    return Object.assign(q, figure(q));
  });
}

const inOrder = (frames) => [...frames].sort((a, b) => a.lane.id - b.lane.id);

// A frame with what only the drawing has: the canvas and the scale of the values.
const at = (p, q) => Object.assign(q, { ctx: p.ctx, y: p.y });

function fitted(extents, p, frames, of) {
  let [low, high] = [Infinity, -Infinity];
  const see = (value) => {
    if (p.logValues && !(value > 0)) return;
    if (value < low) low = value;
    if (value > high) high = value;
  };
  for (const q of frames) {
    for (const value of [q.strong, q.faint]) for (let i = q.first; value && i <= q.last; i++) see(value(i));
  }
  for (let i = p.first; of.also && i <= p.last; i++) see(of.also(p)[i]);
  if (p.logValues) return extents.log.fit(low, high);
  if (!(high >= low)) return extents.linear.range;
  if (of.zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  if (high - low < 1e-9) high = low + 1;
  const room = 0.03 * (high - low); // so that no line lies on the frame
  return extents.linear.fit(low < 0 || !of.zero ? low - room : low, high + room);
}

function fairBand(p) {
  area(p, (i) => p.store.fair_max_vio_p95[i], p.theme.band);
}

function fairMean(p) {
  line(p, (i) => p.store.fair_max_vio[i], { color: p.theme.muted, width: 1.5, dash: [5, 4] });
}

// Where a twin would be that is as A is.
function zeroLine(p) {
  p.ctx.fillStyle = lookOf({ id: 0, name: "A" }, p.theme).color;
  p.ctx.fillRect(p.box.left, Math.round(p.y(0)) - 0.5, p.box.width, 1.5);
}

function strongLine(q) {
  const { look } = q;
  const chosen = q.lane.id === q.view.twin;
  // A rim in the background's colour keeps lines that cross apart.
  if (look.dash.length) line(q, q.strong, { color: q.theme.background, width: chosen ? 4 : 3.5 });
  line(q, q.strong, { color: look.color, width: chosen ? 2.75 : 2, dash: look.dash });
}

// Letter and symbol of each twin where its line ends, pushed apart where they would lie on each other.
function letters(p, ends) {
  for (const { lane, x, place } of apart(ends, p.box)) {
    const left = Math.min(Math.max(x, p.box.left), p.box.right) + 4;
    label(p, `${symbolOf(lane)}${lane.name}`, left, place, lookOf(lane, p.theme).color, { size: 11 });
  }
}

// Where a twin's line ends within the chart: nowhere, or in one place.
function endOf(p, q) {
  for (let i = q.last; i >= q.first; i--) {
    const y = p.y(q.strong(i));
    if (Number.isFinite(y)) return [{ lane: q.lane, x: p.x(q.store.step[i]), y: Math.min(Math.max(y, p.box.top), p.box.bottom) }];
  }
  return [];
}

// Whether a chart has nothing to tell because what it shows is switched off in all twins.
function silent(frames, { off }) {
  return Boolean(off) && frames.every((q) => off(q.store) && flat(q));
}

function flat({ strong, first, last }) {
  for (let i = first; i <= last; i++) if (strong(i) !== 0) return false;
  return true;
}

// A twin's value at a step, or at its last step before; none where it had not begun or had stopped.
function valueAt(q, step) {
  const i = q.store.indexOf(step);
  return i >= q.first && i <= q.last && (q.store.step[i] === step || i + 1 < q.store.count) ? q.strong(i) : NaN;
}

function described(p, i, frames, { of, show, weight }) {
  const words = typeof of.words === "function" ? of.words() : of.words;
  const what = weight ? `${words}, ${weightText(weight)},` : words;
  const step = p.store.step[i];
  const values = inOrder(frames).map((q) => `${q.lane.name} ${show(valueAt(q, step))}`);
  return values.length ? `${what} at step ${step}: ${values.join(", ")}.` : `${words}: nothing to compare yet.`;
}
