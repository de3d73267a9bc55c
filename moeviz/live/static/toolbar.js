// What to look at: how many steps, which layer, which expert. And the place for messages.

import { el, setHidden, setText } from "./dom.js";
import { PauseSign } from "./menu.js";

const WINDOWS = [["200", "last 200"], ["1000", "last 1000"], ["all", "all steps"]];

export class Toolbar {
  // `menu` is the menu of how charts are drawn.
  constructor(view, menu) {
    this.view = view;
    this.windows = WINDOWS.map(([value, text]) => this.#windowButton(value, text));
    this.layers = this.#select("Layer", (value) => view.set({ layer: value }));
    this.experts = this.#select("Expert", (value) => view.set({ expert: value }));
    this.unzoom = el("button", { type: "button", class: "unzoom", hidden: "" }, "Reset zoom");
    this.unzoom.addEventListener("click", () => view.set({ zoom: null }));
    this.badge = el("div", { class: "badge", hidden: "" });
    this.notice = el("div", { class: "notice", role: "status", hidden: "" });
    this.menu = menu;
    this.pauseSign = new PauseSign(view);
    const windows = el("div", { class: "windows", role: "group", "aria-label": "Steps shown" }, ...this.windows);
    this.root = el(
      "div", { class: "toolbar" }, windows, this.layers.root, this.experts.root, menu.button, menu.box, this.unzoom,
      this.pauseSign.root, this.badge, this.notice,
    );
  }

  #windowButton(value, text) {
    const button = el("button", { type: "button", "data-window": value }, text);
    button.addEventListener("click", () => this.view.set({ window: value, zoom: null }));
    return button;
  }

  #select(name, chosen) {
    const select = el("select", { "aria-label": name });
    select.addEventListener("change", () => chosen(Number(select.value)));
    return { root: el("label", {}, `${name} `, select), select, made: "" };
  }

  draw(store, { notice, serious, badge }) {
    const { view } = this;
    for (const button of this.windows) {
      button.setAttribute("aria-pressed", String(!view.zoom && button.dataset.window === view.window));
    }
    this.#offer(this.layers, store.layers, [], Math.min(view.layer, store.layers - 1));
    setHidden(this.layers.root, store.layers < 2);
    this.#offer(this.experts, store.experts, [["-1", "none"]], view.expert);
    this.menu.draw(store);
    this.pauseSign.draw();
    setHidden(this.unzoom, !view.zoom);
    setHidden(this.badge, !badge);
    setText(this.badge, badge);
    setHidden(this.notice, !notice);
    setText(this.notice, notice);
    this.notice.classList.toggle("serious", serious);
  }

  #offer(list, count, before, value) {
    const made = `${count}`;
    if (list.made !== made) {
      list.made = made;
      const numbers = Array.from({ length: count }, (_, i) => [String(i), String(i)]);
      list.select.replaceChildren(...[...before, ...numbers].map(([v, text]) => el("option", { value: v }, text)));
    }
    if (list.select.value !== String(value)) list.select.value = String(value);
  }
}
