// What remains of a curve when its noise is averaged away, as TensorBoard's slider does it.
//
// m ← w·m + (1 − w)·value per step, divided by what the weights have added up to, so that it does not cling to 0 or to
// the first value. Where steps are missing, one value stands for all of them.

export const USUAL = 1 - 1 / 16; // the weight that the task loss has where nobody chose

// The weight that smooths a chart whose own is `usual`.
export const weightOf = (view, usual = 0) => view.smoothing ?? usual;

// The share of entry `index` in its mean.
export function shareOf(steps, index, weight) {
  if (!index) return 1;
  return (1 - weight ** (steps[index] - steps[index - 1])) / (1 - weight ** (steps[index] - steps[0] + 1));
}

// value(i) -> the means up to entry `last`, as an array over entries. A value that is none leaves the mean as it was.
export function smoothed(store, last, weight, value) {
  const means = new Float32Array(last + 1);
  let mean = NaN;
  for (let i = 0; i <= last; i++) {
    const now = value(i);
    if (Number.isFinite(now)) mean = Number.isFinite(mean) ? mean + shareOf(store.step, i, weight) * (now - mean) : now;
    means[i] = mean;
  }
  return means;
}

export const weightText = (weight) => `smoothed ${weight.toFixed(2)}`;
