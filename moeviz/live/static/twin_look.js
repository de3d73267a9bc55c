// How each twin is told from the others: by its letter, its line, its symbol, and only then by its colour.
//
// The colours differ in lightness as well as in hue, so that they stay apart for people who see red and green alike.

const LOOKS = {
  A: { light: "#0b5cad", dark: "#6cb6ff", dash: [], symbol: "●" },
  B: { light: "#c24e00", dark: "#ff9d5c", dash: [7, 3], symbol: "■" },
  C: { light: "#007f62", dark: "#4fe0b5", dash: [2, 2.5], symbol: "▲" },
  D: { light: "#3f1052", dark: "#ffd9fb", dash: [9, 3, 2, 3], symbol: "◆" },
};
const LETTERS = Object.keys(LOOKS);

// The letter whose look a twin has.
export function letterOf({ id, name }) {
  return name in LOOKS ? name : LETTERS[id % LETTERS.length];
}

export function lookOf(twin, theme) {
  const { light, dark, dash, symbol } = LOOKS[letterOf(twin)];
  return { color: theme.dark ? dark : light, dash, symbol };
}

// A piece of a twin's line, for its heading. The colour comes from the style sheet.
export function sampleOf(twin) {
  const { dash } = LOOKS[letterOf(twin)];
  const holder = document.createElement("span");
  holder.className = "sample";
  holder.setAttribute("aria-hidden", "true");
  holder.innerHTML =
    `<svg width="30" height="6" viewBox="0 0 30 6"><line x1="0" y1="3" x2="30" y2="3" ` +
    `stroke="currentColor" stroke-width="2.5" stroke-dasharray="${dash.join(" ")}"/></svg>`;
  return holder;
}

export const symbolOf = (twin) => LOOKS[letterOf(twin)].symbol;
