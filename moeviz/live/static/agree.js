// Tells Python when a run is not as Python believes, so that the page around the charts is drawn again.
//
// Once per disagreement, and only when it lasts: right after a click the script and the run may differ for a moment.

const LASTING_MS = 600;

export class Agreement {
  constructor(tell) {
    this.tell = tell;
    this.since = 0;
    this.told = "";
  }

  check(known, state) {
    if (known.playing === state.playing && known.status === state.status) {
      this.since = 0;
      this.told = "";
      return;
    }
    this.since ||= performance.now();
    const lasts = state.status === "released" || performance.now() - this.since > LASTING_MS;
    const difference = JSON.stringify([known, state.playing, state.status]);
    if (!lasts || this.told === difference) return;
    this.told = difference;
    this.tell({ status: state.status, playing: state.playing, message: state.message });
  }
}
