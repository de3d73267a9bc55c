// One chart's place on the page: its size, its Plotly axes, its canvas, the mouse, and its picture as a file.
//
// The plot box follows from fixed margins, so data is painted before Plotly has come, and stays where it is when the
// axes join it.

import { el, setHidden, setText } from "./dom.js";
import { offer, pictureName } from "./files.js";
import { SvgPen } from "./svg_pen.js";
import { baseLayout } from "./theme.js";

const CLICK_PX = 4;
const FILE_SCALE = 2; // pixels of a saved picture per CSS pixel
const TITLE_PX = 22; // that a file is higher than the chart, for its title
const NO_DATA = [{ x: [null], y: [null], type: "scatter", mode: "lines", hoverinfo: "skip" }]; // makes Plotly draw axes

export class Panel {
  // `page` is what all panels share: {Plotly, view, changed()}; Plotly is null until it has come.
  constructor(card, page) {
    this.card = card;
    this.page = page;
    this.margin = { l: 46, r: 12, t: 16, b: 34 };
    this.canvas = el("canvas");
    this.axes = el("div", { class: "axes" });
    this.cursor = el("div", { class: "cursor", hidden: "" });
    this.readoutBox = el("div", { class: "readout", hidden: "" });
    this.note = el("div", { class: "note", hidden: "" });
    card.plot.append(this.canvas, this.axes, this.cursor, this.note, this.readoutBox);
    this.drawnAs = "";
    this.laid = {}; // what Plotly's axes were last told, by name
    this.onScreen = true;
    this.#watchSize();
    this.#watchPointer();
  }

  // Charts fill these in: the axes for a theme, what of them moves with the data, and what a click means.
  layout(_theme) {
    return {};
  }

  moving() {
    return {};
  }

  clicked(_x, _y) {}

  #watchSize() {
    // Told, not asked: asking for the size while drawing would make the browser lay out the page each time.
    this.outer = [this.card.plot.clientWidth, this.card.plot.clientHeight];
    this.sizes = new ResizeObserver(([{ contentRect }]) => {
      this.outer = [contentRect.width, contentRect.height].map(Math.floor);
      this.page.changed();
    });
    this.sizes.observe(this.card.plot);
    this.sight = new IntersectionObserver(([entry]) => {
      this.onScreen = entry.isIntersecting;
      if (this.onScreen) this.page.changed();
    });
    this.sight.observe(this.card.plot);
  }

  #watchPointer() {
    const { plot } = this.card;
    let pressed = null;
    plot.addEventListener("pointermove", (event) => this.#hover(event));
    plot.addEventListener("pointerleave", () => this.page.view.set({ hover: null }));
    plot.addEventListener("pointerdown", (event) => {
      pressed = [event.clientX, event.clientY];
      this.#hover(event);
    }, true);
    // Plotly covers the page while the mouse drags, so the release is seen by the window only.
    this.released = (event) => {
      if (!pressed) return;
      const moved = Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]);
      pressed = null;
      if (moved < CLICK_PX && event.type === "pointerup" && !event.target.closest?.(".modebar")) this.#click(event);
    };
    for (const type of ["pointerup", "pointercancel"]) window.addEventListener(type, this.released, true);
  }

  #inside(event) {
    const corner = this.card.plot.getBoundingClientRect();
    const [x, y] = [event.clientX - corner.left, event.clientY - corner.top];
    const { left, right, top, bottom } = this.box;
    return x >= left && x <= right && y >= top && y <= bottom ? [x, y] : null;
  }

  #hover(event) {
    const place = this.box && this.#inside(event);
    this.page.view.set({ hover: place ? this.pointed(...place) : null });
  }

  #click(event) {
    const place = this.box && this.#inside(event);
    if (place) this.clicked(...place);
  }

  // Where the data goes, in pixels of the panel; null while the panel has no size.
  measure() {
    const [width, height] = this.outer;
    if (width < 80 || height < 60) return null;
    const { l, r, t, b } = this.margin;
    this.box = { left: l, top: t, right: width - r, bottom: height - b, width: width - l - r, height: height - t - b };
    this.size = [width, height];
    return this.box;
  }

  // Colours for the data from now on; the axes follow with `dress`.
  wear(theme) {
    this.theme = theme;
    this.drawnAs = "";
  }

  // Makes the axes the first time, and again when the theme changes.
  async dress() {
    if (!this.measure()) return;
    const [width, height] = this.size;
    const layout = { ...baseLayout(this.theme, this.margin), ...this.layout(this.theme), width, height };
    this.laid = { ...this.moving(), width, height };
    await this.page.Plotly.react(this.axes, NO_DATA, layout, this.#config());
    this.drawnAs = "";
    if (this.dressed) return;
    this.dressed = true;
    this.axes.on("plotly_relayout", (change) => this.relaid(change));
    this.axes.on("plotly_doubleclick", () => this.page.view.set({ zoom: null }));
  }

  relaid(_change) {}

  // Whether there is anything to draw on, and somebody to see it.
  get drawable() {
    return Boolean(this.theme && this.onScreen && this.measure());
  }

  // Tells Plotly what has moved, if anything: drawing its axes again costs more than painting the data.
  moveAxes() {
    if (!this.dressed) return;
    const [width, height] = this.size;
    const change = {};
    for (const [name, value] of Object.entries({ ...this.moving(), width, height })) {
      if (String(this.laid[name]) !== String(value)) this.laid[name] = change[name] = value;
    }
    if (Object.keys(change).length) this.page.Plotly.relayout(this.axes, change);
  }

  #config() {
    const { Icons } = this.page.Plotly;
    const button = (name, title, icon, click) => ({ name, title, icon, click });
    return {
      displaylogo: false,
      showTips: false,
      displayModeBar: "hover",
      doubleClick: false,
      modeBarButtons: [[
        button("png", "Download as PNG", Icons.camera, () => this.download("png")),
        button("svg", "Download as SVG", Icons.disk, () => this.download("svg")),
        button("reset", "Reset zoom", Icons.home, () => this.page.view.set({ zoom: null })),
      ]],
    };
  }

  // Sets up the canvas for one drawing; returns its context, scaled to CSS pixels and empty. For a file of lines, a pen.
  clear() {
    if (this.pen) {
      this.scale = 100; // edges need no pixels
      return this.pen;
    }
    const scale = (this.scale = this.fileScale || window.devicePixelRatio || 1);
    const [width, height] = this.size.map((length) => Math.round(length * scale));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const ctx = this.canvas.getContext("2d");
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    ctx.clearRect(0, 0, ...this.size);
    if (!this.dressed) this.#frame(ctx);
    return ctx;
  }

  // The lines of the axes where Plotly will draw them.
  #frame(ctx) {
    const { left, top, bottom, width, height } = this.box;
    ctx.fillStyle = this.theme.axis;
    ctx.fillRect(left - 1, top, 1, height + 1);
    ctx.fillRect(left - 1, bottom, width + 1, 1);
  }

  // The data as the content of an <svg>.
  lines() {
    const pen = (this.pen = new SvgPen(...this.size));
    this.#again();
    this.pen = null;
    this.#again();
    return pen.markup;
  }

  // The canvas as a picture, as fine as the file, whatever the screen.
  picture() {
    this.fileScale = FILE_SCALE;
    this.#again();
    const picture = this.canvas.toDataURL();
    this.fileScale = 0;
    this.#again();
    return picture;
  }

  #again() {
    this.drawnAs = "";
    this.draw(this.store);
  }

  // Whether it can be a file by now.
  get savable() {
    return Boolean(this.dressed);
  }

  // A file of what is seen, "png" or "svg".
  async download(format) {
    const { view } = this.page;
    const name = pictureName(this.card.id, this.store, this.store.count ? this.store.step[view.index(this.store)] : 0);
    if (format === "svg") return offer(await this.#svg(), "image/svg+xml", `${name}.svg`);
    return this.#png(name);
  }

  // The axes with room for a title above them, which on the page stands outside.
  #figure(images = []) {
    const [width, height] = this.size;
    const { layout, data } = this.axes;
    const { title, unit } = this.card;
    const text = [`<b>${title.textContent}</b>`, unit.textContent].filter(Boolean).join("  ");
    const margin = { ...layout.margin, t: layout.margin.t + TITLE_PX };
    const heading = { text, x: 0.02, xanchor: "left", y: 1, yanchor: "top", pad: { t: 6 }, font: { size: 13, color: this.theme.text } };
    const more = { images, margin, title: heading, paper_bgcolor: this.theme.background };
    return { figure: { data, layout: { ...layout, ...more } }, size: { width, height: height + TITLE_PX } };
  }

  // Plotly writes its axes; our lines stand beneath or above them.
  async #svg() {
    const { figure, size } = this.#figure();
    const written = await this.page.Plotly.toImage(figure, { format: "svg", ...size, imageDataOnly: true });
    const image = new DOMParser().parseFromString(written, "image/svg+xml");
    const lines = `<svg xmlns="http://www.w3.org/2000/svg"><g class="data" transform="translate(0 ${TITLE_PX})">${this.lines()}</g></svg>`;
    const group = image.importNode(new DOMParser().parseFromString(lines, "image/svg+xml").documentElement.firstChild, true);
    const page = image.documentElement;
    if (this.onTop) page.append(group);
    else page.querySelector("rect").after(group);
    page.prepend(Object.assign(image.createElementNS(page.namespaceURI, "title"), { textContent: this.describe() }));
    return new XMLSerializer().serializeToString(image);
  }

  // Plotly draws its axes and gets our canvas as a picture beneath or above them.
  #png(filename) {
    const [width, height] = this.size;
    const { l, r, t, b } = this.margin;
    const images = [{
      source: this.picture(), xref: "paper", yref: "paper", layer: this.onTop ? "above" : "below", sizing: "stretch",
      x: -l / (width - l - r), y: 1 + t / (height - t - b),
      sizex: width / (width - l - r), sizey: height / (height - t - b),
    }];
    const { figure, size } = this.#figure(images);
    return this.page.Plotly.downloadImage(figure, { format: "png", ...size, scale: FILE_SCALE, filename });
  }

  showReadout(lines, x) {
    setHidden(this.readoutBox, !lines.length);
    if (!lines.length) return;
    setText(this.readoutBox, lines.join("\n"));
    const leftHalf = x < this.box.left + this.box.width / 2;
    this.readoutBox.style.left = leftHalf ? `${x + 8}px` : "auto";
    this.readoutBox.style.right = leftHalf ? "auto" : `${this.size[0] - x + 8}px`;
    this.readoutBox.style.top = `${this.box.top + 2}px`;
  }

  showNote(text) {
    setText(this.note, text);
    setHidden(this.note, !text);
  }

  // What the chart says to those who cannot see it.
  speak() {
    const words = this.describe();
    if (this.card.plot.getAttribute("aria-label") !== words) this.card.plot.setAttribute("aria-label", words);
  }

  dispose() {
    this.sizes.disconnect();
    this.sight.disconnect();
    for (const type of ["pointerup", "pointercancel"]) window.removeEventListener(type, this.released, true);
    if (this.dressed) this.page.Plotly.purge(this.axes);
  }
}
