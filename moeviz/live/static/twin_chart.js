// A chart over steps that all twins share. Beside the data, in the right margin, stand the letters of the lines.

import { StepChart } from "./step_chart.js";

export class TwinChart extends StepChart {
  constructor(card, page, kind) {
    super(card, page, kind);
    this.margin = { l: 42, r: 26, t: 14, b: 33 };
  }

  draw(store) {
    const drawn = super.draw(store);
    if (drawn && store.count) this.kind.letters(this.frame);
    return drawn;
  }

  // Not over the sentence that says why there is nothing to read.
  showReadout(lines, x) {
    super.showReadout(this.note.hidden ? lines : [], x);
  }
}
