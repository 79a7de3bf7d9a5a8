// Plots: plotly, loaded when the first one is drawn, in the page's colours.

import { el, number, replace } from "./dom.js";

const drawn = new Map(); // node -> what it shows, to be drawn anew when the theme changes
let loading = null;

/** Colours for series, told apart by people who see red and green alike; with their own order. */
export const SERIES = ["--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6"];

/** What a colour variable of the page comes to now. */
export function colour(variable) {
  const probe = el("span", { hidden: true, vars: { color: `var(${variable})` } });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** The library; from this server, once. */
function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = el("script", { src: new URL("plotly.min.js", import.meta.url).href });
    script.addEventListener("load", () => resolve(window.Plotly));
    script.addEventListener("error", () => {
      loading = null;
      reject(new Error("the plotting library could not be loaded; is the server still there?"));
    });
    document.head.append(script);
  });
  return loading;
}

/**
 * Draws, or draws anew, in `node`.
 *
 * `traces` and `layout`: plotly's, or functions that make them (called again when the theme changes, so
 * that they may ask for `colour`). Texts from outside must go through `plain`, since plotly reads some tags.
 * `label`: what the plot shows, in a sentence. `table`: `{columns: [text], rows: [[value]]}`, the same
 * figures for who cannot see it; made of the traces' x and y where left out.
 */
export async function plot(node, traces, layout = {}, { label, table = null, onClick = null } = {}) {
  const library = await plotly();
  const figure = node.querySelector(":scope > .figure") ?? el("div", { class: "figure", role: "figure" });
  if (!figure.parentNode) replace(node, figure, el("details", { class: "alternative" }));
  const shown = { figure, traces, layout, label, table };
  drawn.set(node, shown);
  await draw(library, shown);
  if (onClick && !figure.dataset.clickable) {
    figure.dataset.clickable = "yes";
    figure.on("plotly_click", onClick);
  }
  describe(node.querySelector(":scope > .alternative"), shown);
}

/** Frees what plotly holds for a node. */
export function unplot(node) {
  const shown = drawn.get(node);
  drawn.delete(node);
  if (shown && window.Plotly) window.Plotly.purge(shown.figure);
}

/** Text that plotly shows as it is: it takes `<b>` and its like in names, labels and hover texts. */
export function plain(text) {
  return String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

async function draw(library, { figure, traces, layout, label }) {
  const made = typeof traces === "function" ? traces() : traces;
  const wanted = typeof layout === "function" ? layout() : layout;
  figure.setAttribute("aria-label", label ?? "");
  await library.react(figure, made, themed(wanted), {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  });
}

function themed(layout) {
  const text = colour("--text");
  const line = colour("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const own = { ...layout };
  for (const name of Object.keys(layout)) {
    if (/^[xy]axis\d*$/.test(name)) own[name] = { ...axis, ...layout[name] };
  }
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    colorway: SERIES.map(colour),
    margin: { l: 56, r: 16, t: 16, b: 48 },
    hovermode: "closest",
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: axis,
    yaxis: axis,
    ...own,
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: text, ...layout.font },
    hoverlabel: { bgcolor: colour("--surface"), bordercolor: line, font: { color: text }, ...layout.hoverlabel },
  };
}

function describe(details, { traces, table }) {
  const { columns, rows } = table ?? figuresOf(typeof traces === "function" ? traces() : traces);
  const cell = (value) => (typeof value === "number" ? number(value, Number.isInteger(value) ? 0 : 3) : value);
  const head = el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)));
  const body = rows.map((row) => el("tr", {}, row.map((value) => el("td", {}, cell(value)))));
  replace(
    details,
    el("summary", {}, "The same as a table"),
    el("div", { class: "scroll" }, el("table", { class: "table" }, el("thead", {}, head), el("tbody", {}, body))),
  );
}

function figuresOf(traces) {
  const rows = traces.flatMap(({ name, x = [], y = [] }) => Array.from(x, (value, i) => [read(name), value, y[i]]));
  return { columns: ["series", "x", "y"], rows };
}

/** A name as `plain` found it. */
function read(name = "") {
  return name.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
}

document.addEventListener("themechange", () => {
  for (const [node, shown] of drawn) {
    if (node.isConnected) draw(window.Plotly, shown);
    else unplot(node);
  }
});
