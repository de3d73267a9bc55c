// One chart's place on the page: its size, its Plotly axes, its canvas, the mouse, and its picture as a file.

import { el, setHidden, setText } from "./dom.js";
import { baseLayout } from "./theme.js";

const CLICK_PX = 4;

export class Panel {
  // `page` is what all panels share: {Plotly, view, changed()}.
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
    this.onScreen = true;
    this.#watchSize();
    this.#watchPointer();
  }

  // Charts fill this in: the axes for a theme, and what a click means.
  layout(_theme) {
    return {};
  }

  traces() {
    return [{ x: [null], y: [null], type: "scatter", mode: "lines", hoverinfo: "skip" }];
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

  // Makes the axes the first time, and again when the theme changes.
  async dress(theme) {
    this.theme = theme;
    if (!this.measure()) return;
    const layout = { ...baseLayout(theme, this.margin), ...this.layout(theme), width: this.size[0], height: this.size[1] };
    await this.page.Plotly.react(this.axes, this.traces(), layout, this.#config());
    this.drawnAs = "";
    if (this.dressed) return;
    this.dressed = true;
    this.axes.on("plotly_relayout", (change) => this.relaid(change));
    this.axes.on("plotly_doubleclick", () => this.page.view.set({ zoom: null }));
  }

  relaid(_change) {}

  #config() {
    const { Icons } = this.page.Plotly;
    const button = (name, title, icon, click) => ({ name, title, icon, click });
    return {
      displaylogo: false,
      showTips: false,
      displayModeBar: "hover",
      doubleClick: false,
      modeBarButtons: [[
        button("png", "Download as PNG", Icons.camera, () => this.download()),
        button("reset", "Reset zoom", Icons.home, () => this.page.view.set({ zoom: null })),
      ]],
    };
  }

  // Sets up the canvas for one drawing; returns its context, scaled to CSS pixels and empty.
  clear() {
    const scale = window.devicePixelRatio || 1;
    const [width, height] = this.size.map((length) => Math.round(length * scale));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const ctx = this.canvas.getContext("2d");
    ctx.setTransform(scale, 0, 0, scale, 0, 0);
    ctx.clearRect(0, 0, ...this.size);
    return ctx;
  }

  // A PNG of what is seen: Plotly draws its axes and gets our canvas as a picture beneath them.
  download() {
    const [width, height] = this.size;
    const { l, r, t, b } = this.margin;
    const images = [{
      source: this.canvas.toDataURL(), xref: "paper", yref: "paper", layer: "below", sizing: "stretch",
      x: -l / (width - l - r), y: 1 + t / (height - t - b),
      sizex: width / (width - l - r), sizey: height / (height - t - b),
    }];
    const { layout, data } = this.axes;
    const figure = { data, layout: { ...layout, images, paper_bgcolor: this.theme.background } };
    return this.page.Plotly.downloadImage(figure, { format: "png", width, height, scale: 2, filename: `moeviz-${this.card.id}` });
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
