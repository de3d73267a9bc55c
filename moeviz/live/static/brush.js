// Drawing lines on a canvas that lies under Plotly's axes. `p` is the frame that step_chart.js prepares.

// A line through value(index) for each visible entry; a gap where the value is no number or has no place on the axis.
export function line(p, value, { color, width = 1, dash = [], indices = null }) {
  const { ctx } = p;
  const count = indices ? indices.length : p.last - p.first + 1;
  if (count === 1) return dot(p, value, color);
  ctx.beginPath();
  trace(p, value, indices);
  ctx.strokeStyle = color;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.setLineDash(dash);
  ctx.stroke();
  ctx.setLineDash([]);
}

// A single step is no line yet.
function dot(p, value, color) {
  const [x, y] = [p.x(p.store.step[p.first]), p.y(value(p.first))];
  if (!Number.isFinite(x) || !Number.isFinite(y)) return;
  p.ctx.beginPath();
  p.ctx.arc(x, y, 3, 0, 2 * Math.PI);
  p.ctx.fillStyle = color;
  p.ctx.fill();
}

// Points that would fall on a stretch already drawn within half a pixel are left out: the picture is the same.
function trace(p, value, indices) {
  const { ctx } = p;
  const count = indices ? indices.length : p.last - p.first + 1;
  let pen = false;
  let [left, low, high] = [NaN, 0, 0];
  for (let i = 0; i < count; i++) {
    const index = indices ? indices[i] : p.first + i;
    const x = p.x(p.store.step[index]);
    const y = p.y(value(index));
    if (!Number.isFinite(y) || !Number.isFinite(x)) {
      pen = false;
      continue;
    }
    if (pen && x - left < 0.5 && y >= low && y <= high) continue;
    if (pen) ctx.lineTo(x, y);
    else ctx.moveTo(x, y);
    if (!pen || x - left >= 0.5) [left, low, high] = [x, y, y];
    else [low, high] = [Math.min(low, y), Math.max(high, y)];
    pen = true;
  }
}

// The area between value(index) and zero, or the lower end of an axis that has none.
export function area(p, value, color) {
  if (p.last < p.first) return;
  const { ctx } = p;
  const bottom = Math.min(p.y(0) || p.box.bottom, p.box.bottom);
  ctx.beginPath();
  ctx.moveTo(p.x(p.store.step[p.first]), bottom);
  for (let index = p.first; index <= p.last; index++) {
    const y = p.y(value(index));
    ctx.lineTo(p.x(p.store.step[index]), Number.isFinite(y) ? y : bottom);
  }
  ctx.lineTo(p.x(p.store.step[p.last]), bottom);
  ctx.closePath();
  ctx.fillStyle = color;
  ctx.fill();
}

export function diamond(p, x, y, radius, color) {
  const { ctx } = p;
  ctx.beginPath();
  ctx.moveTo(x, y - radius);
  ctx.lineTo(x + radius, y);
  ctx.lineTo(x, y + radius);
  ctx.lineTo(x - radius, y);
  ctx.closePath();
  ctx.fillStyle = color;
  ctx.fill();
  ctx.lineWidth = 1;
  ctx.strokeStyle = p.theme.background;
  ctx.stroke();
}

// Text with a rim in the background's colour, readable over lines.
export function label(p, text, x, y, color, { align = "left", size = 12 } = {}) {
  const { ctx } = p;
  ctx.font = `${size}px ${p.theme.font}`;
  ctx.textAlign = align;
  ctx.textBaseline = "middle";
  ctx.lineWidth = 3;
  ctx.lineJoin = "round";
  ctx.strokeStyle = p.theme.background;
  ctx.strokeText(text, x, y);
  ctx.fillStyle = color;
  ctx.fillText(text, x, y);
}
