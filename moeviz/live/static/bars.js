// Drawing bars on a canvas.

const SPACING = 5; // px between two lines of the hatching
const HATCH_PX = 1.75;

export function clipTo(ctx, { left, top, width, height }) {
  ctx.beginPath();
  ctx.rect(left, top, width, height);
  ctx.clip();
}

// One bar, with a rim unless its thickness is 0. Edges lie between pixels, `scale` of which make one of the page's.
export function outlined(ctx, bar, fill, rim, thickness, scale) {
  ctx.fillStyle = fill;
  ctx.fillRect(...snapped(bar, 0, scale));
  if (thickness) rimOf(ctx, bar, rim, thickness, scale);
}

function rimOf(ctx, bar, color, thickness, scale) {
  ctx.beginPath();
  ctx.rect(...snapped(bar, thickness / 2, scale));
  const [x, y, width, height] = snapped(bar, -thickness / 2, scale);
  if (width > 0 && height > 0) ctx.rect(x, y, width, height);
  ctx.fillStyle = color;
  ctx.fill("evenodd");
}

// A rectangle, larger by `more` on each side, with its edges between pixels.
function snapped([x, y, width, height], more, scale) {
  const snap = (place) => Math.round(place * scale) / scale;
  const [left, top] = [snap(x - more), snap(y - more)];
  return [left, top, snap(x + width + more) - left, snap(y + height + more) - top];
}

export function lineAcross(ctx, { color, width, dash }, from, to) {
  ctx.beginPath();
  ctx.moveTo(...from);
  ctx.lineTo(...to);
  Object.assign(ctx, { strokeStyle: color, lineWidth: width });
  ctx.setLineDash([dash, dash]);
  ctx.stroke();
  ctx.setLineDash([]);
}

// Bars with diagonal lines that run on from one to the next, each with a thin rim.
export function hatching(ctx, box, bars, color, scale) {
  if (!bars.length) return;
  ctx.save();
  ctx.beginPath();
  for (const bar of bars) ctx.rect(...snapped(bar, 0, scale));
  ctx.clip();
  ctx.beginPath();
  for (let along = 0; along < box.width + box.height; along += SPACING * Math.SQRT2) {
    ctx.moveTo(box.left + along + 1, box.top - 1);
    ctx.lineTo(box.left + along - box.height - 1, box.bottom + 1);
  }
  Object.assign(ctx, { strokeStyle: color, lineWidth: HATCH_PX });
  ctx.stroke();
  ctx.restore();
  for (const bar of bars) rimOf(ctx, bar, color, 1, scale);
}
