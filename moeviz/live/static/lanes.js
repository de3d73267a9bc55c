// What the browser remembers of a run with twins: a store for each, and what is said about them.
//
// One answer has all twins: first a message about the run, then one for each twin (moeviz/live/twins.py).

import { Store } from "./store.js";
import { decode } from "./wire.js";

export class Lanes {
  constructor() {
    this.epoch = -1;
    this.told = -1; // checksum of what is said about the twins
    this.recipe = null;
    this.said = [];
    this.all = []; // {id, name, said, version, store, bare}, the base first
    this.face = faceOf([]);
    this.takes = 0;
  }

  get base() {
    return this.all[0] ?? null;
  }

  byId(id) {
    return this.all.find((lane) => lane.id === id) ?? null;
  }

  // What the server need not send again.
  known() {
    const twins = {};
    for (const { id, store, version } of this.all) twins[id] = { after: store.lastStep, version };
    return { epoch: this.epoch, told: this.told, twins };
  }

  // Takes an answer in; returns what it says about the run, and how many rows it had.
  take(buffer) {
    const [{ header }, ...parts] = split(buffer).map(decode);
    if (header.epoch !== this.epoch) this.all = [];
    this.epoch = header.epoch;
    this.told = header.told;
    this.recipe = header.recipe ?? this.recipe;
    this.said = header.twins ?? this.said;
    this.all = parts.map((part) => this.#lane(part));
    this.takes += 1;
    this.face = faceOf(this.all, this.takes);
    return { header, rows: parts.reduce((sum, part) => sum + part.header.n, 0) };
  }

  #lane({ header, columns }) {
    const said = this.said.find(({ id }) => id === header.twin);
    const lane = this.byId(header.twin) ?? newLane(header);
    const { store } = lane;
    store.knobs = header.knobs ?? store.knobs;
    if (header.knobs) store.knobsOf.set(header.version, header.knobs);
    store.recipe = this.recipe;
    for (const [version, label] of header.marks) store.labels.set(version, label);
    store.append(header, columns);
    return Object.assign(lane, { said, name: said.name, version: header.version });
  }
}

function newLane({ twin, layers, experts }) {
  const store = new Store(layers, experts);
  // The small charts have no room for marks.
  return { id: twin, store, bare: Object.create(store, { marks: { value: [] } }) };
}

// The messages of an answer, each after its length.
function split(buffer) {
  const view = new DataView(buffer);
  const parts = [];
  for (let place = 0; place < buffer.byteLength; ) {
    const end = place + 4 + view.getUint32(place, true);
    parts.push(buffer.slice(place + 4, end));
    place = end;
  }
  return parts;
}

// One store to stand for all where a chart needs one: the steps of the twin that has come furthest, everybody's marks.
function faceOf(lanes, takes = 0) {
  const furthest = lanes.reduce((best, lane) => (lane.store.lastStep > best.store.lastStep ? lane : best), lanes[0]);
  const marks = marksOf(lanes);
  return Object.create(furthest?.store ?? new Store(1, 16), {
    serial: { value: `twins ${lanes.map(({ id }) => id)} ${takes}` },
    knobs: { value: lanes[0]?.store.knobs ?? null },
    marks: { value: marks },
    markText: { value: ({ text }) => text },
  });
}

// A change of the base changes all twins: it is one mark. What only some changed says whose it is.
function marksOf(lanes) {
  const found = new Map();
  for (const { name, store } of lanes) {
    for (const mark of store.marks) {
      const text = store.markText(mark);
      const key = `${mark.step} ${text}`;
      if (!found.has(key)) found.set(key, { step: mark.step, text, names: [] });
      found.get(key).names.push(name);
    }
  }
  const marks = [...found.values()].sort((a, b) => a.step - b.step);
  return marks.map(({ step, text, names }) => ({
    step, text: names.length === lanes.length ? text : `${names.join(", ")}: ${text}`,
  }));
}
