// What can be said about the experts at one step.

const DEAD_WINDOW = 20; // steps, as in moeviz/metrics.py
const DEAD_SHARE = 0.01;

// Which experts had under 1 % of the mean load over the last steps up to entry `index`.
export function deadExperts(store, index, layer) {
  const sums = new Float64Array(store.experts);
  const from = store.step[index] - DEAD_WINDOW;
  let total = 0;
  for (let i = index; i >= 0 && store.step[i] > from; i--) {
    const start = store.row(i, layer);
    for (let e = 0; e < store.experts; e++) {
      sums[e] += store.load[start + e];
      total += store.load[start + e];
    }
  }
  return Array.from(sums, (sum) => sum < (DEAD_SHARE * total) / store.experts);
}

export function busiest(store, index, layer) {
  const start = store.row(index, layer);
  let best = 0;
  for (let e = 1; e < store.experts; e++) if (store.load[start + e] > store.load[start + best]) best = e;
  return best;
}

export function relativeLoad(store, index, layer, expert) {
  const mean = store.mean_load[index * store.layers + layer];
  return mean > 0 ? store.load[store.row(index, layer) + expert] / mean : 0;
}

export const perLayer = (store, name, index, layer) => store[name][index * store.layers + layer];

// The newest held-out loss that was known at entry `index`, and its step.
export function heldOutAt(store, index) {
  for (let i = index; i >= 0; i--) if (Number.isFinite(store.eval_loss[i])) return { loss: store.eval_loss[i], step: store.step[i] };
  return { loss: NaN, step: NaN };
}

// The groups of experts under some knobs: how many, and how many experts each holds.
export function grouping(store, knobs = store.knobs) {
  const groups = knobs?.num_groups ?? 1;
  return groups > 1 && store.experts % groups === 0 ? { groups, size: store.experts / groups } : { groups: 1, size: store.experts };
}

// Distance between ticks on an axis of experts.
export function expertTicks(experts) {
  return [1, 2, 4, 8, 16, 32, 64].find((distance) => distance >= experts / 8) ?? 64;
}
