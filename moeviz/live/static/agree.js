// Tells Python when a run is not as Python believes, so that the page around the charts is drawn again.
//
// Once per disagreement, and only when it lasts: right after a click the script and the run may differ for a moment. And
// only while the visitor's hand rests: of two requests that reach Streamlit at once the first may be lost, and it must
// not be the visitor's click.

const LASTING_MS = 600;
const RESTING_MS = 300;
const RETELL_MS = 5000; // a run that is gone: the first word may have been lost with the connection

let usedAt = -RESTING_MS;
for (const kind of ["pointerdown", "pointerup", "click", "keydown"]) {
  addEventListener(kind, () => (usedAt = performance.now()), { capture: true, passive: true });
}

export class Agreement {
  constructor(tell) {
    this.tell = tell;
    this.since = 0;
    this.told = "";
  }

  check(known, state) {
    const names = Object.keys(known);
    if (names.every((name) => known[name] === state[name])) {
      this.since = 0;
      this.told = "";
      return;
    }
    this.since ||= performance.now();
    const lasts = state.status === "released" || performance.now() - this.since > LASTING_MS;
    const difference = JSON.stringify([known, ...names.map((name) => state[name])]);
    const rests = performance.now() - usedAt > RESTING_MS;
    const again = state.status === "released" && performance.now() - this.toldAt > RETELL_MS;
    if (!lasts || !rests || (this.told === difference && !again)) return;
    this.told = difference;
    this.toldAt = performance.now();
    this.tell({ status: state.status, playing: state.playing, message: state.message });
  }
}
