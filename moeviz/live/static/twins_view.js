// What a person has chosen to look at, where several runs are on the screen: all share one range of steps.

import { View } from "./view.js";

export class TwinsView extends View {
  constructor(changed, face) {
    super(changed);
    this.face = face; // () => the store that stands for all twins
    this.twin = 0; // the chosen one
    this.figure = "loss"; // of which the difference is drawn
  }

  range() {
    return super.range(this.face());
  }

  // -1 also where a twin had not begun at the moment that is shown.
  index(store) {
    const begun = this.at === null || (store.count > 0 && store.step[0] <= this.at);
    return begun ? super.index(store) : -1;
  }

  // The run began again.
  begin() {
    Object.assign(this, { zoom: null, hover: null });
    this.goLive();
  }
}
