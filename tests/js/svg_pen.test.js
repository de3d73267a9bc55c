// Does a file of lines hold what was painted?

import assert from "node:assert/strict";
import test from "node:test";

import "./page.js";

import { SvgPen } from "../../moeviz/live/static/svg_pen.js";

function drawn(paint) {
  const pen = new SvgPen(100, 50);
  paint(pen);
  return pen.markup.replace(/^<defs>(.*?)<\/defs>/, (_, definitions) => (definitions ? `[${definitions}]` : ""));
}

test("a line is one path of its points, in its colour, width and dashes", () => {
  const seen = drawn((pen) => {
    Object.assign(pen, { strokeStyle: "#0b5cad", lineWidth: 2.5, lineJoin: "round" });
    pen.setLineDash([5, 4]);
    pen.beginPath();
    pen.moveTo(1, 2);
    pen.lineTo(3.14159, 4);
    pen.stroke();
  });
  const look = `fill="none" stroke="#0b5cad" stroke-width="2.5" stroke-linejoin="round" stroke-dasharray="5 4"`;
  assert.equal(seen, `<path d="M1 2L3.14 4" ${look}/>`);
});

test("a point that is no number is left out, and a line never begins with one", () => {
  const seen = drawn((pen) => {
    pen.beginPath();
    pen.lineTo(NaN, 2);
    pen.lineTo(1, 2);
    pen.lineTo(Infinity, 2);
    pen.lineTo(3, 4);
    pen.closePath();
    pen.fill("evenodd");
    pen.beginPath();
    pen.stroke();
  });
  assert.equal(seen, `<path d="M1 2L3 4Z" fill="#000" fill-rule="evenodd"/>`);
});

test("rectangles and circles are closed, and leave the path that is being made", () => {
  const seen = drawn((pen) => {
    pen.beginPath();
    pen.moveTo(0, 0);
    pen.fillRect(1, 2, 30, 40);
    pen.lineTo(5, 5);
    pen.arc(10, 10, 3);
    pen.stroke();
  });
  assert.match(seen, /^<path d="M1 2h30v40h-30Z" fill="#000" fill-rule="nonzero"\/>/);
  assert.match(seen, /<path d="M0 0L5 5M7 10a3 3 0 1 0 6 0a3 3 0 1 0 -6 0" fill="none"/);
});

test("what is saved comes back, and a clip ends with it", () => {
  const seen = drawn((pen) => {
    pen.fillStyle = "red";
    pen.save();
    pen.beginPath();
    pen.rect(0, 0, 10, 10);
    pen.clip();
    Object.assign(pen, { fillStyle: "blue", globalAlpha: 0.5 });
    pen.fillRect(0, 0, 1, 1);
    pen.restore();
    pen.fillRect(0, 0, 2, 2);
    pen.clip();
  });
  const [inside, outside] = seen.split("</g>");
  assert.match(inside, /^\[<clipPath id="(pen[\d-]+)"><path d="M0 0h10v10h-10Z"\/><\/clipPath>.*\]<g clip-path="url\(#\1\)">/);
  assert.match(inside, /fill="blue" fill-rule="nonzero" opacity="0.5"\/>$/);
  assert.match(outside, /^<path d="M0 0h2v2h-2Z" fill="red" fill-rule="nonzero"\/>/);
  assert.equal(seen.split("<g ").length, seen.split("</g>").length, "every group is closed");
});

test("letters stay letters, with what could end them written out", () => {
  const seen = drawn((pen) => {
    Object.assign(pen, { font: '11px "Source Sans"', textAlign: "right", textBaseline: "middle", fillStyle: "red" });
    pen.fillText('a < b & "c"', 1, 2);
    pen.strokeText("d", 3, 4);
  });
  assert.match(seen, /^<text x="1" y="2" text-anchor="end" font-size="11" font-family="&quot;Source Sans&quot;"/);
  assert.match(seen, /dominant-baseline="central" fill="red">a &lt; b &amp; &quot;c&quot;<\/text>/);
  assert.match(seen, /<text x="3" y="4" .* fill="none" stroke="#000" .*>d<\/text>$/);
});

test("a picture stays one, with hard edges unless it is to be smoothed, and a tile is repeated", () => {
  const picture = { width: 6, height: 6, toDataURL: () => "data:image/png;base64,AA" };
  const seen = drawn((pen) => {
    pen.drawImage(picture, 1, 2, 30, 40);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, 1, 2, 30, 40);
    pen.fillStyle = pen.createPattern(picture, "repeat");
    pen.fillRect(0, 0, 1, 1);
  });
  assert.match(seen, /^\[<pattern id="(pen[\d-]+)" width="6" height="6".*fill="url\(#\1\)"/);
  const images = seen.match(/<image x="1"[^>]*>/g);
  assert.deepEqual(images.map((image) => image.includes("pixelated")), [false, true]);
  assert.ok(images.every((image) => image.includes(`width="30" height="40" preserveAspectRatio="none"`)));
});
