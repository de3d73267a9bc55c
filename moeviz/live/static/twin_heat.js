// A twin's load history, small, over the same steps as its neighbours'.

import { historyChart } from "./history_chart.js";
import { small, SMALL_MARGIN } from "./small_chart.js";
import { StepChart } from "./step_chart.js";

export class TwinHeat extends small(StepChart) {
  constructor(card, page) {
    super(card, page, historyChart());
    this.margin = { ...SMALL_MARGIN, t: 3 };
  }

  ticks(text) {
    const { box } = this;
    const { range } = this.frame;
    text(String(range[0]), box.left, box.bottom + 9, "left");
    text(`step ${range[1]}`, box.right, box.bottom + 9, "right");
    text("0", box.left - 4, box.top + 4, "right");
    text(String(this.store.experts - 1), box.left - 4, box.bottom - 4, "right");
  }

  // Its neighbours mark the step with a line alone: a box would cover them.
  showReadout(lines, x) {
    super.showReadout(this.page.view.hover?.panel === this ? lines : [], x);
  }

  describe() {
    return this.frame && this.page.view.index(this.store) < 0 ? "This twin had not begun by then." : super.describe();
  }
}
