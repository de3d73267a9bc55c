// Reads one message of the server: the inverse of `encode` in moeviz/live/wire.py, where the format is described.

const FORMAT = 1;
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
  ["dropped_load", "whole", "expert"],
  ["bias", "bias", "expert"],
];
const USUAL = { status: "ready", message: "", notice: "", playing: true, marks: [] };

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
  if (header.scale !== undefined) columns.bias = Float32Array.from(columns.bias, (value) => value * header.scale);
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
