// What charts have in common that are too small for Plotly's axes: their few numbers stand on the canvas itself.

import { offer, pictureName } from "./files.js";

export const SMALL_MARGIN = { l: 32, r: 3, b: 15 };

// A chart class whose `ticks(ctx, text)` are drawn with the data; text(words, x, y, align) looks like Plotly's.
export const small = (Chart) => class extends Chart {
  // Called for axes, which are there already.
  async dress() {}

  get savable() {
    return true;
  }

  clear() {
    return (this.ctx = super.clear());
  }

  draw(store) {
    const drawn = super.draw(store);
    if (drawn) this.ticks((words, x, y, align) => this.#tick(words, x, y, align));
    return drawn;
  }

  #tick(words, x, y, textAlign) {
    const { font, muted } = this.theme;
    Object.assign(this.ctx, { font: `11px ${font}`, textAlign, textBaseline: "middle", fillStyle: muted });
    this.ctx.fillText(words, x, y);
  }

  describe() {
    return `Twin ${this.card.twin}. ${super.describe()}`;
  }

  // A file of what is seen, "png" or "svg".
  async download(format) {
    const { view } = this.page;
    const name = pictureName(this.card.id, this.store, this.store.count ? this.store.step[Math.max(view.index(this.store), 0)] : 0);
    const [width, height] = this.size;
    const ground = this.theme.background;
    if (format === "svg") {
      const paper = `<rect width="${width}" height="${height}" fill="${ground}"/>`;
      const words = Object.assign(document.createElement("i"), { textContent: this.describe() }).innerHTML;
      const svg = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}"><title>${words}</title>${paper}${this.lines()}</svg>`;
      return offer(svg, "image/svg+xml", `${name}.svg`);
    }
    const image = new Image();
    image.src = this.picture();
    await image.decode();
    const sheet = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    const ctx = sheet.getContext("2d");
    ctx.fillStyle = ground;
    ctx.fillRect(0, 0, sheet.width, sheet.height);
    ctx.drawImage(image, 0, 0);
    return sheet.toBlob((blob) => offer(blob, "image/png", `${name}.png`));
  }
};
