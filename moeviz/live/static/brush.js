// Drawing lines on a canvas that lies under Plotly's axes. `p` is the frame that step_chart.js prepares.

const STRETCH = 32; // points of a thick line stroked at once: a browser takes three times as long for one of hundreds
const OFF_PX = 0.2; // that a line may pass a point by

// A line through value(index) for each visible entry; a gap where the value is no number or has no place on the axis.
export function line(p, value, { color, width = 1, dash = [], indices = null }) {
  const { ctx } = p;
  const count = indices ? indices.length : p.last - p.first + 1;
  if (count === 1) return dot(p, value, color);
  ctx.strokeStyle = color;
  ctx.lineWidth = width;
  ctx.lineJoin = "round";
  ctx.setLineDash(dash);
  const inStretches = width > 1 && !dash.length && ctx instanceof CanvasRenderingContext2D;
  const trace = new Trace(ctx, inStretches ? STRETCH : Infinity);
  for (let i = 0; i < count; i++) {
    const index = indices ? indices[i] : p.first + i;
    trace.to(p.x(p.store.step[index]), p.y(value(index)));
  }
  trace.end();
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

// A line from point to point that looks the same with fewer of them.
class Trace {
  constructor(ctx, stretch) {
    Object.assign(this, { ctx, stretch });
    this.points = 0; // of the stretch
    this.drawn = []; // the last two of them, the newer one first
    this.next = null; // as far as the line goes on straight
    this.slopes = [-Infinity, Infinity]; // that pass no point in between by too much
    this.column = [NaN, 0, 0]; // place, lowest and highest of what was drawn within half a pixel
    ctx.beginPath();
  }

  to(x, y) {
    if (!Number.isFinite(x) || !Number.isFinite(y)) this.#lift();
    else if (!this.drawn.length) this.#begin(x, y);
    else if (!this.#covered(x, y)) this.#goOn(x, y);
  }

  end() {
    this.#lift();
    this.ctx.stroke();
  }

  // Whether it falls on what is drawn already.
  #covered(x, y) {
    const [left, low, high] = this.column;
    if (x - left >= 0.5) this.column = [x, y, y];
    else if (y >= low && y <= high) return true;
    else this.column = [left, Math.min(low, y), Math.max(high, y)];
    return false;
  }

  #begin(x, y) {
    this.ctx.moveTo(x, y);
    this.drawn = [[x, y]];
    this.column = [x, y, y];
  }

  #goOn(x, y) {
    const [[fromX, fromY]] = this.drawn;
    const slope = (y - fromY) / (x - fromX);
    if (this.next && !(slope >= this.slopes[0] && slope <= this.slopes[1])) {
      this.#draw();
      return this.#goOn(x, y);
    }
    const off = OFF_PX / (x - fromX);
    this.slopes = [Math.max(this.slopes[0], slope - off), Math.min(this.slopes[1], slope + off)];
    this.next = [x, y];
  }

  // A stretch begins a point before the end of the last one, so that the corner between them is rounded.
  #draw() {
    this.ctx.lineTo(...this.next);
    this.drawn = [this.next, this.drawn[0]];
    this.points += 1;
    this.next = null;
    this.slopes = [-Infinity, Infinity];
    if (this.points < this.stretch) return;
    this.ctx.stroke();
    this.ctx.beginPath();
    this.ctx.moveTo(...this.drawn[1]);
    this.ctx.lineTo(...this.drawn[0]);
    this.points = 1;
  }

  #lift() {
    if (this.next) this.#draw();
    this.drawn = [];
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

const NAME_PX = 12; // height of a name at the end of a line

// Gives each of `ends` ({y}) a `place` as near to its y as names of several lines have room beside each other.
export function apart(ends, { top, bottom }) {
  ends.sort((a, b) => a.y - b.y);
  let below = top - NAME_PX / 2;
  for (const end of ends) below = end.place = Math.max(end.y, below + NAME_PX);
  let above = bottom + NAME_PX / 2;
  for (const end of ends.reverse()) above = end.place = Math.min(end.place, above - NAME_PX);
  return ends;
}
