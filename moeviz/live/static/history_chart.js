// Load history: experts downwards, steps to the right, the colour is the load relative to balance.
//
// Drawn pixel by pixel on a canvas: a Plotly heatmap would keep about 0.25 MB of browser memory at every update.

import { label } from "./brush.js";
import { busiest, expertTicks, grouping, relativeLoad } from "./facts.js";
import { cividis } from "./theme.js";
import { number } from "./words.js";

const MOST = 4; // relative load at the end of the scale
const PER_PIXEL = 4; // entries averaged into one pixel, at most

// The square root puts balance, 1, at the middle of the scale.
const TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  const [red, green, blue] = cividis(i / 255);
  return (255 << 24) | (blue << 16) | (green << 8) | red;
});

export function historyChart() {
  const sheet = { canvas: document.createElement("canvas"), picture: null };
  return {
    id: "history",
    keys: [{ text: "0 = dead" }, { look: "low", text: "1 = balanced" }, { look: "high", text: "≥ 4" }],
    yAxis: (store) => ({ showgrid: false, dtick: expertTicks(store?.experts ?? 16), tick0: 0, tickformat: "d" }),
    extent: (p) => [p.store.experts - 0.5, -0.5],
    paint(p) {
      paintSheet(p, sheet);
      p.ctx.imageSmoothingEnabled = p.store.experts > p.box.height;
      p.ctx.drawImage(sheet.canvas, p.box.left, p.box.top, p.box.width, p.box.height);
      drawGroups(p);
      for (const e of new Set([p.hoverExpert, p.view.expert])) if (e >= 0 && e < p.store.experts) frameRow(p, e);
    },
    expertAt(p, _index, y) {
      const row = Math.floor(((y - p.box.top) / p.box.height) * p.store.experts);
      return Math.min(Math.max(row, 0), p.store.experts - 1);
    },
    readout(p, i) {
      const named = [...new Set([p.hoverExpert, p.view.expert])].filter((e) => e >= 0 && e < p.store.experts);
      if (!named.length) named.push(busiest(p.store, i, p.layer));
      return named.map((e) => `expert ${e}: ${number(relativeLoad(p.store, i, p.layer, e))} × balanced`);
    },
    describe({ store, layer }, i) {
      let [below, above] = [0, 0];
      for (let e = 0; e < store.experts; e++) {
        const relative = relativeLoad(store, i, layer, e);
        if (relative < 0.5) below += 1;
        if (relative > 2) above += 1;
      }
      return (
        `Load history of ${store.experts} experts up to step ${store.step[i]}: there ${above} get more than twice ` +
        `and ${below} less than half of a fair share.`
      );
    },
  };
}

// One pixel column per CSS pixel: the mean relative load of the entries that fall on it.
function paintSheet(p, sheet) {
  const { store, layer } = p;
  const { experts } = store;
  const width = Math.max(1, Math.round(p.box.width));
  const { picture, pixels } = blank(sheet, width, experts);
  const [left, perPixel] = [p.box.left, p.box.width / width];
  const sums = new Float32Array(experts);
  let index = p.first;
  for (let x = 0; x < width; x++) {
    if (p.stepAt(left + x * perPixel) > store.step[p.end]) break;
    const until = p.stepAt(left + (x + 1) * perPixel);
    let next = index;
    while (next + 1 <= p.end && store.step[next + 1] < until) next += 1;
    if (store.step[next] >= until) continue;
    const from = Math.max(index + (next > index ? 1 : 0), next - PER_PIXEL + 1);
    meanLoad(store, from, next, layer, sums);
    for (let e = 0; e < experts; e++) pixels[e * width + x] = TABLE[tone(sums[e])];
    index = next;
  }
  sheet.canvas.getContext("2d").putImageData(picture, 0, 0);
}

// An empty picture; the last one is used again where it fits, since a new one each time keeps the collector busy.
function blank(sheet, width, height) {
  if (sheet.picture?.width !== width || sheet.picture.height !== height) {
    Object.assign(sheet.canvas, { width, height });
    sheet.picture = sheet.canvas.getContext("2d").createImageData(width, height);
  }
  const pixels = new Uint32Array(sheet.picture.data.buffer);
  return { picture: sheet.picture, pixels: pixels.fill(0) };
}

function tone(relative) {
  return Math.min(255, Math.round(255 * Math.sqrt(relative / MOST)));
}

function meanLoad(store, from, to, layer, sums) {
  const { load, experts, layers, mean_load: means } = store;
  sums.fill(0);
  for (let i = from; i <= to; i++) {
    const start = store.row(i, layer);
    const weight = 1 / (Math.max(means[i * layers + layer], 1e-9) * (to - from + 1));
    for (let e = 0; e < experts; e++) sums[e] += load[start + e] * weight;
  }
}

function drawGroups(p) {
  const { groups, size } = grouping(p.store, p.store.knobsAt(p.moment));
  const { ctx, box } = p;
  ctx.fillStyle = p.theme.background;
  for (let group = 1; group < groups; group++) {
    ctx.fillRect(box.left, Math.round(box.top + (group * size * box.height) / p.store.experts) - 1, box.width, 1.5);
  }
}

function frameRow(p, expert) {
  const height = p.box.height / p.store.experts;
  const top = p.box.top + expert * height;
  const { ctx } = p;
  const thick = expert === p.view.expert ? 2 : 1;
  for (const [color, width] of [["#000000", 2 * thick], ["#ffffff", thick]]) {
    ctx.strokeStyle = color;
    ctx.lineWidth = width;
    ctx.strokeRect(p.box.left + 1, top, p.box.width - 2, Math.max(height, 2));
  }
  if (expert === p.view.expert) label(p, `expert ${expert}`, p.box.left + 6, top + (expert ? -8 : height + 9), p.theme.select);
}
