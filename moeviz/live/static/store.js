// What the browser remembers of a run: one growing typed array per column, one entry per step received.
//
// Steps ascend but need not be consecutive: the server thins a long catch-up, and a full store thins its older entries.
// Both keep the highest and the lowest, so that a spike is seen however long ago it was.

import { shareOf, USUAL } from "./smoothing.js";

const MOST_STEPS = 4000;
const MOST_BYTES = 48e6;

const PER_STEP = {
  step: Uint32Array,
  version: Uint32Array,
  task_loss: Float32Array,
  eval_loss: Float32Array,
  fair_max_vio: Float32Array,
  fair_max_vio_p95: Float32Array,
  fair_min_load_p05: Float32Array,
  steps_per_second: Float32Array,
  routed_differently: Float32Array,
  smooth_loss: Float32Array,
};
const PER_LAYER = {
  max_vio: Float32Array,
  fan_out: Float32Array,
  dropped_fraction: Float32Array,
  dead_experts: Uint16Array,
  mean_load: Float32Array,
  mean_bias: Float32Array,
  bias_spread: Float32Array,
};
const PER_EXPERT = { bias: Float32Array, load: Uint16Array, kept_load: Uint16Array };
const DERIVED = new Set(["smooth_loss", "mean_load", "mean_bias", "bias_spread"]);

let stores = 0;

export class Store {
  constructor(layers, experts) {
    this.serial = ++stores; // tells one run's data from another's
    this.layers = layers;
    this.experts = experts;
    this.count = 0;
    this.stretch = 8; // steps of which the highest and the lowest are kept, where entries are thinned
    this.recipe = null;
    this.knobs = null;
    this.knobsOf = new Map(); // settings version -> knobs, as far as this browser has seen them
    this.labels = new Map(); // settings version -> what changed, in words
    this.marks = []; // {step, from, to}: the settings went from one version to another before this step
    this.lastHeldOut = NaN;
    this.lastHeldOutStep = NaN;
    this.capacity = Math.min(MOST_STEPS, Math.floor(MOST_BYTES / (layers * experts * 8)));
    this.columns = new Map();
    this.#addColumns(PER_STEP, 1);
    this.#addColumns(PER_LAYER, layers);
    this.#addColumns(PER_EXPERT, layers * experts);
  }

  #addColumns(kinds, width) {
    for (const [name, Kind] of Object.entries(kinds)) {
      const data = new Kind(64 * width);
      this.columns.set(name, { width, data });
      this[name] = data; // looked up millions of times a second, so no getter
    }
  }

  get lastStep() {
    return this.count ? this.step[this.count - 1] : -1;
  }

  // Where the experts of one layer begin in a column of loads or biases.
  row(index, layer) {
    return (index * this.layers + layer) * this.experts;
  }

  // The knobs that an entry was made with; null where this browser never heard of them.
  knobsAt(index) {
    return index === this.count - 1 ? this.knobs : (this.knobsOf.get(this.version[index]) ?? null);
  }

  // The last entry whose step is not after `step`, or -1.
  indexOf(step) {
    let low = -1;
    let high = this.count - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.step[middle] <= step) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  append({ n }, arrays) {
    for (let row = 0; row < n; row++) {
      if (arrays.step[row] <= this.lastStep) continue; // an answer that crossed another
      if (this.count === this.capacity) this.#thin();
      this.#reserve();
      for (const [name, column] of this.columns) {
        if (DERIVED.has(name)) continue;
        const start = row * column.width;
        column.data.set(arrays[name].subarray(start, start + column.width), this.count * column.width);
      }
      this.#derive(this.count++);
    }
  }

  #reserve() {
    if (this.count * this.columns.get("step").width < this.step.length) return;
    const length = Math.min(this.capacity, this.count * 2);
    for (const [name, column] of this.columns) {
      const larger = new column.data.constructor(length * column.width);
      larger.set(column.data);
      this[name] = column.data = larger;
    }
  }

  #derive(index) {
    this.#deriveSmoothLoss(index);
    for (let layer = 0; layer < this.layers; layer++) {
      const start = this.row(index, layer);
      let [loads, biases] = [0, 0];
      let [low, high] = [Infinity, -Infinity];
      for (let expert = 0; expert < this.experts; expert++) {
        const bias = this.bias[start + expert];
        loads += this.load[start + expert];
        biases += bias;
        if (bias < low) low = bias;
        if (bias > high) high = bias;
      }
      this.mean_load[index * this.layers + layer] = loads / this.experts;
      this.mean_bias[index * this.layers + layer] = biases / this.experts;
      this.bias_spread[index * this.layers + layer] = high - low;
    }
    if (index > 0 && this.version[index] !== this.version[index - 1]) {
      this.marks.push({ step: this.step[index], from: this.version[index - 1], to: this.version[index] });
    }
    if (Number.isFinite(this.eval_loss[index])) {
      this.lastHeldOut = this.eval_loss[index];
      this.lastHeldOutStep = this.step[index];
    }
  }

  #deriveSmoothLoss(index) {
    const loss = this.task_loss[index];
    const before = index ? this.smooth_loss[index - 1] : NaN;
    const share = shareOf(this.step, index, USUAL);
    if (!Number.isFinite(loss)) this.smooth_loss[index] = before;
    else this.smooth_loss[index] = Number.isFinite(before) ? before + share * (loss - before) : loss;
  }

  // Makes room. The newest entries stay; of the steps before them, a stretch at a time, stay those that `telling` names.
  // Stretches are equally long, so that a picture of all steps is as fine at its beginning as later on.
  #thin() {
    const old = this.count - Math.floor(this.capacity / 4);
    let kept = this.#telling(old);
    while (kept.length > this.capacity / 2) {
      this.stretch *= 2;
      kept = this.#telling(old);
    }
    let to = 0;
    for (const index of kept) this.#move(index, to++);
    for (const { width, data } of this.columns.values()) data.copyWithin(to * width, old * width, this.count * width);
    this.count -= old - to;
  }

  // Of each stretch of steps among the first `count` entries: highest and lowest MaxVio and task loss, a held-out loss,
  // and the first entry under changed settings.
  #telling(count) {
    const kept = [];
    for (let from = 0; from < count; ) {
      const end = (Math.floor(this.step[from] / this.stretch) + 1) * this.stretch;
      let to = from + 1;
      while (to < count && this.step[to] < end) to += 1;
      kept.push(...this.#tellingIn(from, to));
      from = to;
    }
    return kept;
  }

  #tellingIn(from, to) {
    const kept = new Set();
    for (const value of [(i) => this.#worstMaxVio(i), (i) => this.task_loss[i]]) {
      let [low, high] = [from, from];
      for (let i = from + 1; i < to; i++) {
        if (value(i) < value(low) || Number.isNaN(value(low))) low = i;
        if (value(i) > value(high) || Number.isNaN(value(high))) high = i;
      }
      kept.add(low).add(high);
    }
    let [heldOut, changed] = [-1, -1];
    for (let i = from; i < to; i++) {
      if (Number.isFinite(this.eval_loss[i])) heldOut = i;
      if (changed < 0 && i > 0 && this.version[i] !== this.version[i - 1]) changed = i;
    }
    if (from === 0) kept.add(0); // where the picture begins
    for (const index of [heldOut, changed]) if (index >= 0) kept.add(index);
    return [...kept].sort((a, b) => a - b);
  }

  #worstMaxVio(index) {
    let worst = -Infinity;
    for (let layer = 0; layer < this.layers; layer++) worst = Math.max(worst, this.max_vio[index * this.layers + layer]);
    return worst;
  }

  // Whether steps are missing between the entries from `first` to `last`.
  hasGaps(first, last) {
    return last > first && this.step[last] - this.step[first] > last - first;
  }

  #move(from, to) {
    if (from === to) return;
    for (const { width, data } of this.columns.values()) data.copyWithin(to * width, from * width, (from + 1) * width);
  }

  // What changed at a mark, in words.
  markText({ from, to }) {
    const texts = [];
    for (let version = from + 1; version <= to; version++) {
      if (this.labels.has(version)) texts.push(this.labels.get(version));
    }
    return texts.join("; ") || "settings changed";
  }
}
