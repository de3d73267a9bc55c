// A dotted line on every step chart where a setting changed, with the change beside it.

import { label } from "./brush.js";
import { shorten } from "./words.js";

const ROWS = 3;
const ROW_HEIGHT = 14;
const LONGEST = 24;
const SIZE = 11;
const GAP = 3;

export function drawMarks(p) {
  const visible = p.store.marks.filter(({ step }) => step >= p.range[0] && step <= p.range[1]);
  const { ctx } = p;
  ctx.beginPath();
  for (const { step } of visible) {
    ctx.moveTo(p.x(step), p.box.top);
    ctx.lineTo(p.x(step), p.box.bottom);
  }
  casing(p);
  const ends = new Array(ROWS).fill(-Infinity); // where the last text of each row ends
  for (const mark of visible) drawText(p, mark, ends);
}

// Dots with a pale edge: visible on a plain background and on the heatmap.
function casing(p) {
  const { ctx } = p;
  ctx.strokeStyle = p.theme.background;
  ctx.lineWidth = 2.5;
  ctx.globalAlpha = 0.6;
  ctx.stroke();
  ctx.globalAlpha = 1;
  ctx.setLineDash([2, 3]);
  ctx.strokeStyle = p.theme.mark;
  ctx.lineWidth = 1.5;
  ctx.stroke();
  ctx.setLineDash([]);
}

// Neighbours step down a row; where all rows are taken only the line stays, and hovering tells the rest.
function drawText(p, mark, ends) {
  p.ctx.font = `${SIZE}px ${p.theme.font}`;
  const at = p.x(mark.step);
  const right = p.box.right + 8 - at - GAP;
  const left = at - GAP - p.box.left;
  const text = fit(p.ctx, shorten(brief(p.store.markText(mark)), LONGEST), Math.max(left, right));
  const width = p.ctx.measureText(text).width;
  const start = width <= right ? at + GAP : at - GAP - width;
  const row = ends.findIndex((end) => start > end + 5);
  if (row < 0) return;
  ends[row] = start + width;
  label(p, text, start, p.box.top - 8 + row * ROW_HEIGHT, p.theme.mark, { size: SIZE });
}

// What it was before can be seen on the chart; hovering tells it too.
function brief(text) {
  return text.length > LONGEST ? text.replace(/ \S+ →/g, " →") : text;
}

function fit(ctx, text, room) {
  const { width } = ctx.measureText(text);
  return width <= room ? text : shorten(text, Math.max(4, Math.floor((text.length * room) / width)));
}

// The mark that a cursor at `step` touches, if any.
export function markNear(store, step, tolerance) {
  const near = store.marks.filter((mark) => Math.abs(mark.step - step) <= tolerance);
  return near.sort((a, b) => Math.abs(a.step - step) - Math.abs(b.step - step))[0] ?? null;
}
