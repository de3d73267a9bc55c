// What a person has chosen to look at. Shared by all charts; it never touches the training.

const ROUND = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];

export class View {
  constructor(changed) {
    this.changed = changed; // called after every change
    this.window = "all"; // "200", "1000" or "all"
    this.zoom = null; // [first step, last step] chosen by dragging; stays until released
    this.layer = 0;
    this.expert = -1; // the selected expert
    this.hover = null; // {step, expert, chart}
  }

  set(change) {
    Object.assign(this, change);
    this.changed();
  }

  select(expert) {
    this.set({ expert: expert === this.expert ? -1 : expert });
  }

  // The steps shown. The right edge moves in jumps of about a twentieth, because redrawing five axes costs more than
  // drawing what is in them.
  range(store) {
    if (this.zoom) return this.zoom;
    const last = Math.max(store.lastStep, 0);
    const width = this.window === "all" ? Math.max(last, 20) : Number(this.window);
    const jump = ROUND.find((round) => round >= width / 20) ?? 200000;
    const edge = Math.max(Math.ceil(last / jump) * jump, 20);
    return this.window === "all" ? [0, edge] : [Math.max(0, edge - width), edge];
  }
}
