// As little of a browser as the charts' modules ask for: elements, events, a canvas that notes what is painted, frames
// and a clock that tests turn themselves.

import { mock } from "node:test";

export const SIZE = [400, 200]; // of every element, in px

let everywhere = new EventTarget(); // the window's listeners

class FakeElement extends EventTarget {
  constructor(tag) {
    super();
    Object.assign(this, { tag, children: [], parent: null, attributes: {}, style: {}, hidden: false, disabled: false });
    Object.assign(this, { title: "", clientWidth: SIZE[0], clientHeight: SIZE[1] });
    this.classList = { toggle: (name, on) => this.#toggle(name, on), contains: (name) => this.#classes.includes(name) };
    this.dataset = new Proxy({}, {
      get: (_, name) => this.attributes[dashed(name)],
      set: (_, name, value) => (this.setAttribute(dashed(name), value), true),
    });
    if (tag === "input") Object.assign(this, { numbers: { min: "0", max: "100", value: "50" }, checked: false });
  }

  get #classes() {
    return (this.attributes.class ?? "").split(" ").filter(Boolean);
  }

  set className(names) {
    this.attributes.class = names;
  }

  #toggle(name, on = !this.#classes.includes(name)) {
    const others = this.#classes.filter((other) => other !== name);
    this.attributes.class = (on ? [...others, name] : others).join(" ");
  }

  setAttribute(name, value) {
    this.attributes[name] = String(value);
    if (name === "hidden") this.hidden = true;
    else if (["min", "max", "value", "title"].includes(name)) this[name] = String(value);
  }

  getAttribute(name) {
    return this.attributes[name] ?? null;
  }

  append(...nodes) {
    for (const node of nodes) {
      this.children.push(node);
      if (node instanceof FakeElement) node.parent = this;
    }
  }

  prepend(...nodes) {
    this.append(...nodes);
  }

  after() {}

  replaceChildren(...nodes) {
    this.children = [];
    this.append(...nodes);
  }

  get lastChild() {
    return this.children.at(-1);
  }

  get textContent() {
    return this.children.map((child) => child.textContent ?? child).join("");
  }

  set textContent(text) {
    this.children = text === "" ? [] : [text];
  }

  // Selectors of one element, like `input[type=range]` or `.st-key-u`, with commas between them.
  matches(selectors) {
    return selectors.split(",").some((selector) => this.#is(selector.trim()));
  }

  #is(selector) {
    const [whole, tag, more] = selector.match(/^([a-z]*)(.*)$/);
    if (tag && tag !== this.tag) return false;
    return (more.match(/:not\([^)]*\)|\.[\w-]+|\[[^\]]*\]/g) ?? (whole === tag ? [] : [".nothing"])).every((part) => {
      if (part.startsWith(":not")) return !this.#is(part.slice(5, -1));
      if (part.startsWith(".")) return this.#classes.includes(part.slice(1));
      const [name, value] = part.slice(1, -1).split("=");
      return value === undefined ? name in this.attributes : this.attributes[name] === value.replaceAll('"', "");
    });
  }

  closest(selectors) {
    return this.matches(selectors) ? this : (this.parent?.closest(selectors) ?? null);
  }

  querySelector(selectors) {
    return this.querySelectorAll(selectors)[0] ?? null;
  }

  querySelectorAll(selectors) {
    const inside = this.children.filter((child) => child instanceof FakeElement);
    return inside.flatMap((child) => {
      const found = child.querySelectorAll(selectors);
      return child.matches(selectors) ? [child, ...found] : found;
    });
  }

  getContext() {
    return (this.context ??= new FakeCanvas());
  }
}

// A range keeps its value between its ends, and all three are texts.
for (const name of ["min", "max", "value"]) {
  Object.defineProperty(FakeElement.prototype, name, {
    get() {
      if (!this.numbers) return this.attributes[name];
      const { min, max, value } = this.numbers;
      const inside = Math.min(Math.max(Number(value), Number(min)), Math.max(Number(min), Number(max)));
      return name === "value" && this.attributes.type === "range" ? String(inside) : this.numbers[name];
    },
    set(value) {
      (this.numbers ?? this.attributes)[name] = String(value);
    },
  });
}

const dashed = (name) => `data-${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;

const PAINTING = [
  ...["beginPath", "moveTo", "lineTo", "closePath", "rect", "arc", "fill", "stroke", "clip", "save", "restore"],
  ...["fillRect", "clearRect", "strokeRect", "fillText", "strokeText", "drawImage", "putImageData", "setLineDash"],
  "setTransform",
];

// A canvas' context. `calls` are the names of what was asked, what it was asked with, and the colours at that time.
export class FakeCanvas {
  constructor() {
    Object.assign(this, { calls: [], globalAlpha: 1 });
  }

  measureText(text) {
    return { width: 6 * text.length };
  }

  createPattern(tile) {
    return { tile };
  }

  createImageData(width, height) {
    return { width, height, data: new Uint8ClampedArray(4 * width * height) };
  }

  // What was asked by one name.
  asked(name) {
    return this.calls.filter((call) => call.name === name);
  }
}
for (const name of PAINTING) {
  FakeCanvas.prototype[name] = function (...given) {
    const { fillStyle, strokeStyle, globalAlpha } = this;
    this.calls.push({ name, given, fillStyle, strokeStyle, globalAlpha });
  };
}

const frames = [];

class Watching {
  observe() {}
  disconnect() {}
}

Object.assign(globalThis, {
  window: globalThis,
  CanvasRenderingContext2D: FakeCanvas,
  ResizeObserver: Watching,
  IntersectionObserver: Watching,
  document: Object.assign(new EventTarget(), {
    hidden: false,
    createElement: (tag) => new FakeElement(tag),
    querySelector: (selectors) => page.querySelector(selectors),
  }),
  addEventListener: (...given) => everywhere.addEventListener(...given),
  removeEventListener: (...given) => everywhere.removeEventListener(...given),
  requestAnimationFrame: (callback) => frames.push(callback),
});

export const page = new FakeElement("body"); // what `document` finds its elements in

export function element(tag, attributes = {}, ...children) {
  const node = new FakeElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// An event at an element, which its parents and, before all of them, the window see too. Returns it.
export function fire(node, type, details = {}) {
  const event = new Event(type, { cancelable: true });
  let stopped = false;
  const own = { target: node, stopPropagation: () => (stopped = true), ...details };
  for (const [name, value] of Object.entries(own)) Object.defineProperty(event, name, { value });
  for (let on = everywhere; on && !stopped; on = on === everywhere ? node : on.parent) on.dispatchEvent(event);
  return event;
}

export const click = (node) => fire(node, "click");
export const press = (node, key, details) => fire(node, "keydown", { key, ...details });

// The next frame of the screen, at a moment in ms.
export function frame(now) {
  for (const callback of frames.splice(0)) callback(now);
}

// As if the page had gone: nobody listens to the window or waits for a frame any more.
export function leave() {
  everywhere = new EventTarget();
  frames.length = 0;
}

// Timers and `performance.now()` that go on when a test says so: `await pass(ms)`.
export function ownClock() {
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  mock.method(performance, "now", () => Date.now());
}

const STEP_MS = 5;

export async function pass(ms) {
  for (let passed = 0; passed < ms; passed += STEP_MS) {
    mock.timers.tick(Math.min(STEP_MS, ms - passed));
    await settled();
  }
}

// All that waits for a promise has gone on.
export const settled = () => new Promise((resolve) => setImmediate(resolve));
