// Colours for light and dark, chosen by lightness first: no message rests on hue alone.

const LIGHT = {
  muted: "#565c68", grid: "rgba(0,0,0,0.08)", axis: "#8b909a", card: "#ffffff",
  bar: "#9fbfdf", barOver: "#1f5596", edge: "#0b1f3a", dropped: "#a8440b", band: "rgba(70,95,120,0.17)",
  line: "#0b5cad", thin: "#93a5bb", heldOut: "#a8440b", mark: "#6b3fa0", select: "#c2185b", map: [0, 0.62],
};
const DARK = {
  muted: "#b3b9c5", grid: "rgba(255,255,255,0.10)", axis: "#7c8594", card: "#0e1117",
  bar: "#3b6591", barOver: "#a9d0ff", edge: "#ffffff", dropped: "#ffab70", band: "rgba(170,190,215,0.24)",
  line: "#6cb6ff", thin: "#66788e", heldOut: "#ffb77c", mark: "#cfb0ff", select: "#ff8fb8", map: [0.38, 1],
};

// Cividis (Nuñez, Anderton, Renslow 2018): even steps of lightness, the same for people who see red and green alike.
const CIVIDIS = [
  [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115],
  [138, 134, 120], [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56],
];

export function cividis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const below = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const mix = place - below;
  return CIVIDIS[below].map((value, i) => Math.round(value + mix * (CIVIDIS[below + 1][i] - value)));
}

export const css = ([red, green, blue]) => `rgb(${red},${green},${blue})`;

// Streamlit's own colours are read again on every call: people switch themes while watching.
export function readTheme(node) {
  const style = getComputedStyle(node);
  const variable = (name, otherwise) => {
    const value = style.getPropertyValue(name).trim();
    return value && value !== "unset" ? value : otherwise;
  };
  const background = variable("--st-background-color", "#ffffff");
  const dark = lightness(node, background) < 0.5;
  return {
    ...(dark ? DARK : LIGHT),
    dark,
    background,
    text: variable("--st-text-color", dark ? "#fafafa" : "#31333f"),
    font: style.fontFamily || "sans-serif",
  };
}

function lightness(node, color) {
  const probe = document.createElement("span");
  probe.style.color = color;
  node.append(probe);
  const [red, green, blue] = getComputedStyle(probe).color.match(/[\d.]+/g).map(Number);
  probe.remove();
  return (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
}

// What every chart of ours shares in Plotly's terms.
export function baseLayout(theme, margin) {
  return {
    margin,
    font: { family: theme.font, size: 12, color: theme.text },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    hovermode: false,
    autosize: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.muted, activecolor: theme.text, orientation: "h" },
  };
}

export function axis(theme, more) {
  return {
    gridcolor: theme.grid,
    linecolor: theme.axis,
    tickcolor: theme.axis,
    tickfont: { size: 12, color: theme.muted },
    zeroline: false,
    showline: true,
    ticks: "outside",
    ticklen: 3,
    automargin: false,
    ...more,
  };
}

export function title(theme, text) {
  return { text, standoff: 2, font: { size: 12, color: theme.muted } };
}
