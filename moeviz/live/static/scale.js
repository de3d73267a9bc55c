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
