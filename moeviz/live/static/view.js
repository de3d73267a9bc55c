// What a person has chosen to look at. Shared by all charts; it never touches the training.

const ROUND = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000];

// How charts are drawn: stays through a reset and a visit to another page, as long as the tab lives.
const manners = { smoothing: null, logValues: false, logSteps: false };

export class View {
  constructor(changed) {
    this.changed = changed; // called after every change
    this.window = "all"; // "200", "1000" or "all"
    this.zoom = null; // [first step, last step] chosen by dragging; stays until released
    this.layer = 0;
    this.expert = -1; // the selected expert
    this.hover = null; // {step, expert, chart}
    this.at = null; // the step that everything shows; null is the newest one
    this.until = null; // drawing is paused at this step; null draws what comes
    Object.assign(this, manners); // smoothing: weight from 0 to 0.99, null is what each chart has of its own
  }

  set(change) {
    Object.assign(this, change);
    for (const name of Object.keys(manners)) manners[name] = this[name];
    this.changed();
  }

  select(expert) {
    this.set({ expert: expert === this.expert ? -1 : expert });
  }

  // The newest moment and the newest picture, as for another run.
  goLive() {
    Object.assign(this, { at: null, until: null });
  }

  // The entry of a store that is drawn last; -1 where there is none.
  end(store) {
    return this.until === null ? store.count - 1 : Math.max(store.indexOf(this.until), Math.min(0, store.count - 1));
  }

  // The entry of the moment that is shown, or the nearest that is kept; -1 where there is none.
  index(store) {
    const end = this.end(store);
    return this.at === null ? end : Math.min(nearest(store, this.at), end);
  }

  // The steps shown. The right edge moves in jumps of about a twentieth, because redrawing five axes costs more than
  // drawing what is in them.
  range(store) {
    const range = this.zoom ?? this.#window(store);
    return this.at === null ? range : turnedTo(range, this.at);
  }

  #window(store) {
    const last = Math.max(store.count ? store.step[this.end(store)] : 0, 0);
    const width = this.window === "all" ? Math.max(last, 20) : Number(this.window);
    const jump = ROUND.find((round) => round >= width / 20) ?? 200000;
    const edge = Math.max(Math.ceil(last / jump) * jump, 20);
    return this.window === "all" ? [0, edge] : [Math.max(0, edge - width), edge];
  }
}

// The entry nearest to a step; -1 where there is none.
export function nearest(store, step) {
  const below = Math.max(store.indexOf(step), Math.min(0, store.count - 1));
  const above = Math.min(below + 1, store.count - 1);
  return store.step[above] - step < step - store.step[below] ? above : below;
}

// As wide a stretch of steps that has `step` in it, turned to like a page.
function turnedTo([low, high], step) {
  if (step >= low && step <= high) return [low, high];
  const start = Math.floor(step / (high - low)) * (high - low);
  return [start, start + high - low];
}
