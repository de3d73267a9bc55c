// Reads one message of the server: the inverse of `encode` in moeviz/live/wire.py, where the format is described.

const FORMAT = 2;
const [SAME, COUNT] = [0, 8];
const LAYOUT = [
  ["step", "whole", "step"],
  ["version", "whole", "step"],
  ["task_loss", "point", "step"],
  ["eval_loss", "point", "step"],
  ["fair_max_vio", "point", "step"],
  ["fair_max_vio_p95", "point", "step"],
  ["fair_min_load_p05", "point", "step"],
  ["steps_per_second", "newest", "step"],
  ["routed_differently", "point", "step"],
  ["fan_out", "point", "layer"],
  ["dead_experts", "whole", "layer"],
  ["load", "whole", "expert"],
  ["drop_limit", "whole", "layer"],
  ["dropped_load", "whole", "expert"],
  ["bias", "bias", "expert"],
];
const USUAL = { status: "ready", message: "", notice: "", playing: true, marks: [], push: 0 };

export function decode(buffer) {
  const bytes = new Uint8Array(buffer);
  if (bytes[0] !== FORMAT) throw new Error("This page and its server are not of the same age. Reload the page.");
  const start = 4 + (bytes[1] | (bytes[2] << 8) | (bytes[3] << 16));
  const header = { ...USUAL, ...JSON.parse(new TextDecoder().decode(bytes.subarray(4, start))) };
  const [n, layers, experts] = header.shape;
  Object.assign(header, { n, layers, experts });
  const widths = { step: 1, layer: layers, expert: layers * experts };
  const reader = { bytes, view: new DataView(buffer), place: start, n };
  const columns = {};
  for (const [name, kind, per] of LAYOUT) {
    const whole = kind === "whole" || (kind === "bias" && header.scale !== undefined);
    columns[name] = whole ? readWhole(reader, widths[per]) : readPoint(reader, widths[per]);
  }
  addDropped(columns, header);
  if (header.scale !== undefined) columns.bias = pushed(columns, header);
  return { header, columns: Object.assign(columns, derive(columns, header)) };
}

// Whole numbers, rows first: each row is the one before and its differences.
function readWhole(reader, width) {
  const { n } = reader;
  const values = new Int32Array(n * width);
  if (!n) return values;
  const { view } = reader;
  const size = reader.bytes[reader.place++];
  if (size === SAME || size === COUNT) {
    const first = view.getInt32(reader.place, true);
    reader.place += 4;
    return size === SAME ? values.fill(first) : values.map((_, row) => first + row);
  }
  const bits = readBits(reader, n * width, size);
  for (let k = 0, at = 0; k < width; k++) {
    let value = 0;
    for (let row = 0; row < n; row++, at++) {
      value += (bits[at] >>> 1) ^ -(bits[at] & 1);
      values[row * width + k] = value;
    }
  }
  return values;
}

function readPoint(reader, width) {
  const { n } = reader;
  const values = new Float32Array(n * width);
  if (!n) return values;
  const size = reader.bytes[reader.place++];
  if (size === SAME) {
    values.fill(reader.view.getFloat32(reader.place, true));
    reader.place += 4;
    return values;
  }
  const read = new Float32Array(readBits(reader, n * width, size).buffer);
  for (let k = 0, at = 0; k < width; k++) for (let row = 0; row < n; row++) values[row * width + k] = read[at++];
  return values;
}

// Values whose lowest bytes come first, then their next ones.
function readBits(reader, count, size) {
  const bits = new Uint32Array(count);
  for (let byte = 0; byte < size; byte++) {
    const part = reader.bytes.subarray(reader.place, (reader.place += count));
    for (let i = 0; i < count; i++) bits[i] |= part[i] << (8 * byte);
  }
  return bits;
}

// What exceeds a layer's limit was dropped; no limit where that is 0.
function addDropped({ load, dropped_load, drop_limit }, { experts }) {
  drop_limit.forEach((limit, i) => {
    if (!limit) return;
    for (let k = i * experts; k < (i + 1) * experts; k++) dropped_load[k] += Math.max(load[k] - limit, 0);
  });
}

// Biases: each was pushed against its load of the row before, and what else it moved was sent.
function pushed({ load, bias }, { n, layers, experts, push, scale }) {
  const width = layers * experts;
  const sum = new Int32Array(width);
  const pushes = new Float32Array(n * width);
  for (let row = 0; row < n; row++) {
    for (let k = 0; k < width; k++) pushes[row * width + k] = (bias[row * width + k] + push * sum[k]) * scale;
    if (push) addPushes(sum, load.subarray(row * width, (row + 1) * width), experts);
  }
  return pushes;
}

function addPushes(sum, load, experts) {
  for (let first = 0; first < load.length; first += experts) {
    let pairs = 0;
    for (let k = first; k < first + experts; k++) pairs += load[k];
    for (let k = first; k < first + experts; k++) sum[k] += Math.sign(pairs - load[k] * experts);
  }
}

// What follows from loads, as moeviz/metrics.py has it.
function derive({ load, dropped_load: dropped }, { n, layers, experts }) {
  const kept_load = load.map((count, i) => count - dropped[i]);
  const max_vio = new Float32Array(n * layers);
  const dropped_fraction = new Float32Array(n * layers);
  for (let i = 0; i < n * layers; i++) {
    let [pairs, most, lost] = [0, 0, 0];
    for (let k = i * experts; k < (i + 1) * experts; k++) {
      pairs += load[k];
      most = Math.max(most, load[k]);
      lost += dropped[k];
    }
    const mean = pairs / experts;
    max_vio[i] = pairs ? (most - mean) / mean : 0;
    dropped_fraction[i] = pairs ? lost / pairs : 0;
  }
  return { kept_load, max_vio, dropped_fraction };
}
