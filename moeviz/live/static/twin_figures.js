// The figures that twins are compared by, entry by entry of a twin's store.

import { perLayer } from "./facts.js";
import { smoothed, USUAL, weightOf } from "./smoothing.js";

// The weight that smooths a figure, 0 where nothing does.
export const WEIGHTS = {
  loss: (view) => weightOf(view, USUAL),
  max_vio: (view) => weightOf(view, USUAL), // of several runs the noise of each hides the others
  dropped: (view) => weightOf(view),
  spread: () => 0,
  routed: () => 0,
};

const RAW = {
  loss: ({ store }) => (i) => store.task_loss[i],
  max_vio: ({ store, layer }) => (i) => perLayer(store, "max_vio", i, layer),
  spread: ({ store, layer }) => (i) => perLayer(store, "bias_spread", i, layer),
  dropped: ({ store, layer }) => (i) => 100 * perLayer(store, "dropped_fraction", i, layer),
  routed: ({ store }) => (i) => 100 * store.routed_differently[i],
};

// {strong, faint} of one twin: what is drawn as its line and, if that is smoothed, what is behind it; both by index.
export function figureOf(q, figure) {
  const raw = RAW[figure](q);
  const weight = WEIGHTS[figure](q.view);
  if (!weight) return { strong: raw, faint: null };
  // The loss' usual mean was taken when every step was there.
  const kept = figure === "loss" && q.view.smoothing === null;
  const means = kept ? q.store.smooth_loss : smoothed(q.store, q.end, weight, raw);
  return { strong: (i) => means[i], faint: raw };
}

// A figure of one twin minus that of another, by index of the first. Means are read between the other's steps where
// older ones were thinned; what one step shows is compared with the same step alone.
export function minus(q, base, figure) {
  const own = figureOf(q, figure);
  const other = figureOf({ ...q, store: base, end: q.view.end(base) }, figure);
  const places = placesIn(base, q);
  const exactly = (mine, theirs) => (i) => {
    const j = places[i - q.first];
    return j >= 0 && base.step[j] === q.store.step[i] ? mine(i) - theirs(j) : NaN;
  };
  if (!own.faint) return { strong: exactly(own.strong, other.strong), faint: null };
  return {
    strong: (i) => own.strong(i) - between(base, places[i - q.first], q.store.step[i], other.strong),
    faint: exactly(own.faint, other.faint),
  };
}

// For each visible entry the other store's last entry that is not after it, or -1.
function placesIn(base, { store, first, last }) {
  const places = new Int32Array(Math.max(last - first + 1, 0));
  let place = store.count ? base.indexOf(store.step[first]) : -1;
  for (let i = first; i <= last; i++) {
    while (place + 1 < base.count && base.step[place + 1] <= store.step[i]) place += 1;
    places[i - first] = place;
  }
  return places;
}

function between(base, place, step, value) {
  if (place < 0) return NaN;
  const before = base.step[place];
  if (before === step) return value(place);
  if (place + 1 >= base.count) return NaN;
  const share = (step - before) / (base.step[place + 1] - before);
  return value(place) + share * (value(place + 1) - value(place));
}
