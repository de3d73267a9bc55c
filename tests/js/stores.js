// Stores filled as the server's answers would fill them.

import { Store } from "../../moeviz/live/static/store.js";

// Entries at these steps. `columns` has of some columns the values of each entry: one, one per layer, or one per layer
// and expert. Where nothing is said there is no held-out loss, and all else is 0.
export function storeWith(steps, columns = {}, { layers = 1, experts = 4, ...more } = {}) {
  const store = Object.assign(new Store(layers, experts), more);
  give(store, steps, columns);
  return store;
}

export function give(store, steps, columns = {}) {
  const arrays = blank(store, steps);
  for (const [name, values] of Object.entries(columns)) arrays[name].set(values.flat());
  store.append({ n: steps.length }, arrays);
}

function blank(store, steps) {
  const arrays = {};
  for (const [name, { width, data }] of store.columns) arrays[name] = new data.constructor(steps.length * width);
  arrays.eval_loss.fill(NaN);
  arrays.step.set(steps);
  return arrays;
}

// Every `by`-th step from `from` to `until`.
export function count(from, until, by = 1) {
  return Array.from({ length: Math.ceil((until - from) / by) }, (_, i) => from + by * i);
}

// Steps of a run in which MaxVio has a spike at 1234, the loss a dip at 777, and settings change at 1777.
export function giveRun(store, steps) {
  const arrays = blank(store, steps);
  arrays.load.fill(1);
  steps.forEach((step, i) => {
    arrays.version[i] = Number(step >= 1777);
    arrays.max_vio.fill(step === 1234 ? 50 : 1 + ((step * 7919) % 100) / 100, i * store.layers, (i + 1) * store.layers);
    arrays.task_loss[i] = step === 777 ? 0.25 : 1 + ((step * 104729) % 100) / 100;
    if (step % 25 === 0) arrays.eval_loss[i] = step / 1e6;
  });
  store.append({ n: steps.length }, arrays);
}

// The values of a column up to the newest entry.
export function column(store, name) {
  const { width, data } = store.columns.get(name);
  return [...data.subarray(0, store.count * width)];
}
