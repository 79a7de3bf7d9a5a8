// A plot of points and lines over two axes, drawn as SVG by this page alone: for reports, which are one file.

import { el, replace, significant, svg } from "./dom.js";

const BOX = { left: 60, right: 20, top: 18, bottom: 46 };
const HEIGHT = 340;
const NARROWEST = 280;
export const SHAPES = {
  circle: "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0",
  square: "M-4.5-4.5h9v9h-9z",
  diamond: "M0-6L6 0L0 6L-6 0z",
  "triangle-up": "M0-6L5.5 4.5H-5.5z",
  star: "M0-6.5L1.9-2.1L6.5-1.8L3 1.3L4.1 6L0 3.4L-4.1 6L-3 1.3L-6.5-1.8L-1.9-2.1z",
  cross: "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
  x: "M-4.5-6L0-1.5L4.5-6L6-4.5L1.5 0L6 4.5L4.5 6L0 1.5L-4.5 6L-6 4.5L-1.5 0L-6-4.5z",
  hexagon: "M-5.5 0L-2.75-5H2.75L5.5 0L2.75 5H-2.75z",
};

/**
 * Draws a chart in `node`, as wide as it is now.
 *
 * `chart`: `{label, x, y, series}`; an axis is `{label, log}`; a series is `{name, colour, symbol, line, area,
 * points}` with `line` `solid`, `dashed` or null, `area` true for a band between `low` and `high` of `y`. A point
 * is `{x, y, x_low, x_high, y_low, y_high, text, about, kind}`; ends that are missing have no bar, `text` stands
 * beside it, `about` appears where the pointer rests on it, and `kind` is a class of its mark and bars.
 */
export function xyChart(node, chart) {
  const width = Math.max(NARROWEST, node.clientWidth);
  const points = chart.series.flatMap((series) => series.points);
  const x = scale(chart.x, points.flatMap((one) => [one.x, one.x_low, one.x_high]), [BOX.left, width - BOX.right]);
  const y = scale(chart.y, points.flatMap((one) => [one.y, one.y_low, one.y_high]), [HEIGHT - BOX.bottom, BOX.top]);
  const drawn = svg(
    "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "xy-chart", role: "img", "aria-label": chart.label },
    axes(x, y, chart, width),
    chart.series.map((series) => group(series, x, y)),
  );
  replace(node, drawn);
}

function group(series, x, y) {
  const { points } = series;
  const at = (one) => [x(one.x), y(one.y)];
  return svg(
    "g", { data: { variant: series.name }, vars: { "--own": series.colour } },
    series.area && svg("path", { class: "band", d: `${path([...points.map((one) => [x(one.x), y(one.y_high)]), ...points.map((one) => [x(one.x), y(one.y_low)]).reverse()])}Z` }),
    series.line && svg("path", { class: `line ${series.line}`, d: path(points.map(at)) }),
    !series.area && points.map((one) => bars(one, x, y)),
    series.symbol && points.map((one) => {
      const [left, top] = at(one);
      return svg("path", { class: `point ${one.kind ?? ""}`, d: SHAPES[series.symbol] ?? SHAPES.circle, transform: `translate(${left.toFixed(1)} ${top.toFixed(1)})` }, one.about && svg("title", {}, one.about));
    }),
    points.map((one) => one.text && label(one, x, y)),
  );
}

function label(one, x, y) {
  const [left, top] = [x(one.x), y(one.y)];
  const atRight = left > x.end - 80;
  return svg("text", { x: left + (atRight ? -8 : 8), y: top - 8, "text-anchor": atRight ? "end" : "start" }, one.text);
}

function bars(one, x, y) {
  const [left, top] = [x(one.x), y(one.y)];
  const name = `bar ${one.kind ?? ""}`;
  return [
    present(one.x_low) && present(one.x_high) && svg("line", { class: name, x1: x(one.x_low), x2: x(one.x_high), y1: top, y2: top }),
    present(one.y_low) && present(one.y_high) && svg("line", { class: name, x1: left, x2: left, y1: y(one.y_low), y2: y(one.y_high) }),
  ];
}

function present(value) {
  return value !== null && value !== undefined;
}

/** A function from values to pixels, with its ticks: powers of ten and their doubles and fives, or round steps. */
function scale({ log }, values, [start, end]) {
  const known = values.filter((value) => present(value) && Number.isFinite(value) && (!log || value > 0));
  let [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [log ? 1 : 0, log ? 10 : 1];
  if (log) {
    if (high / low < 1.5) [low, high] = [low / 1.5, high * 1.5];
    [low, high] = [low / (high / low) ** 0.06, high * (high / low) ** 0.06];
  } else {
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    [low, high] = [low - room, high + room];
  }
  const span = log ? Math.log(high / low) : high - low;
  const found = (value) => start + ((log ? Math.log(Math.max(value, low) / low) : value - low) / span) * (end - start);
  found.end = Math.max(start, end);
  found.ticks = log ? logTicks(low, high) : evenTicks(low, high);
  return found;
}

function logTicks(low, high) {
  const steps = high / low > 300 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const step of steps) ticks.push(step * 10 ** power);
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

function evenTicks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}

function axes(x, y, chart, width) {
  const bottom = HEIGHT - BOX.bottom;
  const most = Math.max(2, Math.floor((width - BOX.left) / 60));
  const thin = (ticks) => ticks.filter((_, i) => i % Math.ceil(ticks.length / most) === 0);
  return svg(
    "g", { class: "axes" },
    thin(x.ticks).map((tick) => [
      svg("line", { x1: x(tick), x2: x(tick), y1: BOX.top, y2: bottom }),
      svg("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, significant(tick)),
    ]),
    y.ticks.map((tick) => [
      svg("line", { x1: BOX.left, x2: width - BOX.right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: BOX.left - 6, y: y(tick) + 4, "text-anchor": "end" }, significant(tick)),
    ]),
    svg("text", { x: (BOX.left + width - BOX.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, chart.x.label),
    svg("text", { x: 12, y: (BOX.top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(BOX.top + bottom) / 2})` }, chart.y.label),
  );
}

/** The outline through points in pixels, for the `d` of a path. */
export function path(points) {
  return points.map(([left, top], i) => `${i ? "L" : "M"}${left.toFixed(1)} ${top.toFixed(1)}`).join("");
}

/** The chart's figures as a table, for who cannot see it. */
export function xyTable({ x, y, series }) {
  const rows = series.filter((one) => !one.area).flatMap((one) => one.points.map((point) => [one.name, significant(point.x), significant(point.y), point.text ?? ""]));
  return el(
    "details", { class: "alternative" }, el("summary", {}, "The same as a table"),
    el(
      "div", { class: "scroll" },
      el(
        "table", { class: "table" },
        el("thead", {}, el("tr", {}, ["series", x.label, y.label, ""].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell))))),
      ),
    ),
  );
}
