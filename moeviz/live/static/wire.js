// Reads one message of the server: the inverse of `encode` in moeviz/live/wire.py.

const KINDS = { u2: Uint16Array, i2: Int16Array, u4: Uint32Array, f4: Float32Array };

export function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const columns = {};
  let offset = 4 + length;
  for (const [name, kind, width] of header.columns) {
    columns[name] = new KINDS[kind](buffer, offset, header.n * width);
    offset += Math.ceil(columns[name].byteLength / 4) * 4;
  }
  columns.bias = Float32Array.from(columns.bias, (value) => value * header.bias_scale);
  columns.kept_load ??= columns.load;
  return { header, columns };
}
