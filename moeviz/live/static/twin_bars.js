// A twin's expert load now, with the same scale as its neighbours'.

import { expertTicks } from "./facts.js";
import { LoadChart } from "./load_chart.js";
import { Extent } from "./scale.js";
import { small, SMALL_MARGIN } from "./small_chart.js";

const LABEL_PX = 22;

// One scale for the bars of all twins.
export class CommonScale {
  constructor() {
    this.extent = new Extent();
  }

  get range() {
    return this.extent.range;
  }

  // A chart alone does not decide.
  fit() {
    return this.range;
  }

  // Whether the scale has changed.
  over(highest) {
    const before = String(this.range);
    this.extent.fit(0, highest * 1.1);
    return String(this.range) !== before;
  }
}

export class TwinBars extends small(LoadChart) {
  constructor(card, page, scale) {
    super(card, page);
    this.extent = scale;
    this.margin = { ...SMALL_MARGIN, t: 14 };
  }

  ticks(text) {
    const { box, experts } = this;
    const [bottom, top] = this.extent.range;
    for (const load of [bottom, (bottom + top) / 2, top]) {
      text(String(Math.round(load)), box.left - 4, box.bottom - ((load - bottom) / (top - bottom)) * box.height, "right");
    }
    const distance = Math.max(expertTicks(experts), Math.ceil((experts * LABEL_PX) / box.width));
    for (let e = 0; e < experts; e += distance) {
      text(String(e), box.left + ((e + 0.5) / experts) * box.width, box.bottom + 9, "center");
    }
  }
}
