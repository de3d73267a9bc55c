// A dotted line on every step chart where a setting changed, with the change beside it.

import { label } from "./brush.js";
import { shorten } from "./words.js";

const ROWS = 3;
const ROW_HEIGHT = 14;
const LONGEST = 24;
const SIZE = 11;
const GAP = 3;
const FAINT = 0.4; // strength of marks after the shown moment

export function drawMarks(p) {
  const newest = p.store.step[p.end];
  const visible = p.store.marks.filter(({ step }) => step >= p.range[0] && step <= p.range[1] && step <= newest);
  lines(p, visible.filter(({ step }) => step <= p.at), 1);
  lines(p, visible.filter(({ step }) => step > p.at), FAINT);
  const ends = new Array(ROWS).fill(-Infinity); // where the last text of each row ends
  for (const mark of visible) drawText(p, mark, ends);
}

function lines(p, marks, strength) {
  const { ctx } = p;
  ctx.beginPath();
  for (const { step } of marks) {
    ctx.moveTo(p.x(step), p.box.top);
    ctx.lineTo(p.x(step), p.box.bottom);
  }
  casing(p, strength);
}

// Dots with a pale edge: visible on a plain background and on the heatmap.
function casing(p, strength) {
  const { ctx } = p;
  ctx.strokeStyle = p.theme.background;
  ctx.lineWidth = 2.5;
  ctx.globalAlpha = 0.6 * strength;
  ctx.stroke();
  ctx.globalAlpha = strength;
  ctx.setLineDash([2, 3]);
  ctx.strokeStyle = p.theme.mark;
  ctx.lineWidth = 1.5;
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.globalAlpha = 1;
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
  p.ctx.globalAlpha = mark.step > p.at ? FAINT : 1;
  label(p, text, start, p.box.top - 8 + row * ROW_HEIGHT, p.theme.mark, { size: SIZE });
  p.ctx.globalAlpha = 1;
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
