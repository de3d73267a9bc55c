// The "i" beside a title: what it means, by which formula, and who says so.

import { el } from "./dom.js";

export class Info {
  constructor(root) {
    this.box = el("div", { class: "info-box", popover: "auto" });
    root.append(this.box);
    this.box.addEventListener("toggle", (event) => {
      if (event.newState === "closed") this.owner?.setAttribute("aria-expanded", "false");
    });
  }

  button(text) {
    const button = el("button", { class: "info", type: "button", "aria-label": `About ${text.title}`, "aria-expanded": "false" }, "i");
    button.addEventListener("click", () => this.open(button, text));
    return button;
  }

  // Shows a text beside a button, or hides it again.
  open(button, text) {
    if (this.shows(button)) return this.box.hidePopover();
    this.#fill(text);
    this.owner = button;
    this.box.showPopover();
    button.setAttribute("aria-expanded", "true");
    return placeBeside(this.box, button.getBoundingClientRect());
  }

  // New numbers for the text that is open, if it is this button's.
  refresh(button, text) {
    if (this.shows(button)) this.#fill(text);
  }

  shows(button) {
    return this.owner === button && this.box.matches(":popover-open");
  }

  #fill(text) {
    this.box.replaceChildren(
      el("strong", {}, text.title),
      el("p", {}, text.meaning),
      ...(text.formula ? [el("p", { class: "formula" }, text.formula)] : []),
      ...(text.source ? [el("p", { class: "source" }, `Source: ${text.source}`)] : []),
    );
  }
}

// Puts an open popover under a button, or above it where it would not fit.
export function placeBeside(box, { left, bottom, top }) {
  const { offsetWidth: width, offsetHeight: height } = box;
  const fitsBelow = bottom + height + 8 < window.innerHeight;
  box.style.left = `${Math.max(8, Math.min(left, window.innerWidth - width - 8))}px`;
  box.style.top = `${Math.max(8, fitsBelow ? bottom + 6 : top - height - 6)}px`;
}
