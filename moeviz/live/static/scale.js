// Axis ranges that stand still while the data moves a little.

const NICE = [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10];

// The smallest round number that is not below `value`.
export function niceCeil(value) {
  if (!(value > 0) || !Number.isFinite(value)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * (NICE.find((nice) => nice * power >= value * (1 - 1e-9)) ?? 10);
}

// A range that follows its data in rare jumps: redrawing an axis costs more than drawing the lines.
export class Extent {
  constructor() {
    this.range = [0, 1];
  }

  fit(low, high) {
    if (!Number.isFinite(low) || !Number.isFinite(high)) return this.range;
    const [bottom, top] = this.range;
    const roomy = high - low < 0.5 * (top - bottom);
    if (low >= bottom && high <= top && !roomy) return this.range;
    const step = niceCeil((high - low || Math.abs(high) || 1) / 5);
    // The last few percent keep a line at the limit from lying on the frame.
    const edge = 0.02 * (high - low || step);
    this.range = [step * Math.floor(low / step), step * Math.ceil((high + edge) / step)];
    if (this.range[0] === this.range[1]) this.range[1] += step;
    return this.range;
  }
}

// The same where only values above 0 have a place: from one of 1, 2, 5 times a power of ten to another.
export class LogExtent {
  constructor() {
    this.range = [0.1, 10];
  }

  fit(low, high) {
    if (!(low > 0) || !(high >= low) || !Number.isFinite(high)) return this.range;
    const [bottom, top] = this.range;
    const roomy = Math.log10(high / low) < 0.5 * Math.log10(top / bottom);
    if (low >= bottom && high <= top && !roomy) return this.range;
    this.range = [below(low), above(high * 1.02)];
    if (this.range[0] === this.range[1]) this.range[1] = above(this.range[0] * 1.5);
    return this.range;
  }
}

const below = (value) => stop(value, (factors, share) => factors.findLast((factor) => factor <= share * (1 + 1e-9)));
const above = (value) => stop(value, (factors, share) => factors.find((factor) => factor >= share * (1 - 1e-9)));

function stop(value, choose) {
  const power = Math.floor(Math.log10(value) + 1e-12);
  return Number(`${choose([1, 2, 5, 10], value / 10 ** power)}e${power}`);
}

// Where a value lies between two others, from 0 to 1, and back.
export const LINEAR = {
  share: (value, low, high) => (value - low) / (high - low),
  at: (share, low, high) => low + share * (high - low),
};
export const LOG = {
  share: (value, low, high) => (value > 0 ? Math.log(value / low) / Math.log(high / low) : NaN),
  at: (share, low, high) => low * (high / low) ** share,
};

// The range of a chart whose values may stand on either axis.
export class Extents {
  constructor() {
    this.linear = new Extent();
    this.log = new LogExtent();
  }

  // From the lowest to the highest of value(index) over the visible entries. Where it begins at zero, on a linear axis,
  // it reaches up to `least` at the least.
  fit(p, values, { zero = false, least = 0 } = {}) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      for (let i = p.first; i <= p.last; i++) {
        const now = value(i);
        if (p.logValues && !(now > 0)) continue;
        if (now < low) low = now;
        if (now > high) high = now;
      }
    }
    if (p.logValues) return this.log.fit(low, high);
    return zero ? this.linear.fit(0, Math.max(high, least)) : this.linear.fit(low, high);
  }
}
