// A canvas' drawing context that writes SVG: the charts paint with it as on the screen, and every line stays a line.
//
// As much of the canvas' interface as our charts use; anything else is missing and fails loudly.

const SHARED = ["fillStyle", "strokeStyle", "lineWidth", "lineJoin", "globalAlpha", "font", "textAlign", "textBaseline"];
const ANCHORS = { left: "start", center: "middle", right: "end" };
const BASELINES = { middle: "central", alphabetic: "alphabetic" };

let pens = 0;

export class SvgPen {
  constructor(width, height) {
    Object.assign(this, {
      width, height, fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, lineJoin: "miter", globalAlpha: 1,
      font: "12px sans-serif", textAlign: "start", textBaseline: "alphabetic", imageSmoothingEnabled: true,
    });
    this.serial = ++pens;
    this.parts = [];
    this.definitions = [];
    this.path = [];
    this.dash = [];
    this.saved = [];
    this.clips = 0; // groups that a clip has opened
    this.measure = document.createElement("canvas").getContext("2d");
  }

  // The whole drawing, as the content of an <svg>.
  get markup() {
    return `<defs>${this.definitions.join("")}</defs>${this.parts.join("")}${"</g>".repeat(this.clips)}`;
  }

  save() {
    this.saved.push([Object.fromEntries(SHARED.map((name) => [name, this[name]])), this.dash, this.clips]);
  }

  restore() {
    const [look, dash, clips] = this.saved.pop();
    Object.assign(this, look, { dash });
    this.parts.push("</g>".repeat(this.clips - clips));
    this.clips = clips;
  }

  beginPath() {
    this.path = [];
  }

  moveTo(x, y) {
    this.#add("M", x, y);
  }

  lineTo(x, y) {
    this.#add(this.path.length ? "L" : "M", x, y);
  }

  closePath() {
    if (this.path.length) this.path.push("Z");
  }

  rect(x, y, width, height) {
    this.#add("M", x, y);
    this.path.push(`h${short(width)}v${short(height)}h${short(-width)}Z`);
  }

  // Whole circles only, which is all that is drawn.
  arc(x, y, radius) {
    this.#add("M", x - radius, y);
    for (const way of [2, -2]) this.path.push(`a${short(radius)} ${short(radius)} 0 1 0 ${short(way * radius)} 0`);
  }

  #add(letter, x, y) {
    if (Number.isFinite(x) && Number.isFinite(y)) this.path.push(`${letter}${short(x)} ${short(y)}`);
  }

  setLineDash(dash) {
    this.dash = dash;
  }

  stroke() {
    this.#shape(`fill="none" ${this.#line()}`);
  }

  fill(rule = "nonzero") {
    this.#shape(`fill="${escape(this.fillStyle)}" fill-rule="${rule}"`);
  }

  #shape(look) {
    if (this.path.length) this.parts.push(`<path d="${this.path.join("")}" ${look}${this.#alpha()}/>`);
  }

  #line() {
    const dash = this.dash.length ? ` stroke-dasharray="${this.dash.join(" ")}"` : "";
    return `stroke="${escape(this.strokeStyle)}" stroke-width="${short(this.lineWidth)}" stroke-linejoin="${this.lineJoin}"${dash}`;
  }

  #alpha() {
    return this.globalAlpha < 1 ? ` opacity="${short(this.globalAlpha)}"` : "";
  }

  clip() {
    const id = this.#define((id) => `<clipPath id="${id}"><path d="${this.path.join("")}"/></clipPath>`);
    this.parts.push(`<g clip-path="url(#${id})">`);
    this.clips += 1;
  }

  #define(make) {
    const id = `pen${this.serial}-${this.definitions.length}`;
    this.definitions.push(make(id));
    return id;
  }

  fillRect(x, y, width, height) {
    this.#alone(() => this.rect(x, y, width, height), () => this.fill());
  }

  strokeRect(x, y, width, height) {
    this.#alone(() => this.rect(x, y, width, height), () => this.stroke());
  }

  // Draws without disturbing the path that is being made.
  #alone(make, draw) {
    const { path } = this;
    this.path = [];
    make();
    draw();
    this.path = path;
  }

  fillText(text, x, y) {
    this.#text(text, x, y, `fill="${escape(this.fillStyle)}"`);
  }

  strokeText(text, x, y) {
    this.#text(text, x, y, `fill="none" ${this.#line()}`);
  }

  #text(text, x, y, look) {
    const [, size, family] = this.font.match(/([\d.]+)px (.*)/);
    const place = `x="${short(x)}" y="${short(y)}" text-anchor="${ANCHORS[this.textAlign] ?? "start"}"`;
    const face = `font-size="${size}" font-family="${escape(family)}" dominant-baseline="${BASELINES[this.textBaseline]}"`;
    this.parts.push(`<text ${place} ${face} ${look}${this.#alpha()}>${escape(text)}</text>`);
  }

  measureText(text) {
    this.measure.font = this.font;
    return this.measure.measureText(text);
  }

  // A tile, repeated.
  createPattern(tile) {
    const { width, height } = tile;
    const image = `<image width="${width}" height="${height}" href="${tile.toDataURL()}"/>`;
    return `url(#${this.#define((id) => `<pattern id="${id}" width="${width}" height="${height}" patternUnits="userSpaceOnUse">${image}</pattern>`)})`;
  }

  // A picture stays one, with hard edges unless it is to be smoothed.
  drawImage(picture, x, y, width, height) {
    const place = `x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}"`;
    const edges = this.imageSmoothingEnabled ? "" : ` style="image-rendering:pixelated"`;
    this.parts.push(`<image ${place} preserveAspectRatio="none" href="${picture.toDataURL()}"${edges}/>`);
  }
}

const short = (value) => String(Math.round(value * 100) / 100);

const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const escape = (text) => String(text).replace(/[&<>"]/g, (letter) => ENTITIES[letter]);
