// A plot of points and lines over two axes as SVG, and the same as a table. `charts.js` makes them answer to hands.

import { el, freshId, significant, svg } from "./dom.js";

const BOX = { left: 60, right: 20, top: 18, bottom: 46 };
const HEIGHT = 340;
const NARROWEST = 280;
const LETTER = 6.8; // pixels that a letter of a label takes at most, on average
export const SHAPES = {
  circle: "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0",
  square: "M-4.5-4.5h9v9h-9z",
  diamond: "M0-6L6 0L0 6L-6 0z",
  "triangle-up": "M0-6L5.5 4.5H-5.5z",
  "triangle-down": "M0 6L-5.5-4.5H5.5z",
  "triangle-left": "M-6 0L4.5-5.5V5.5z",
  star: "M0-6.5L1.9-2.1L6.5-1.8L3 1.3L4.1 6L0 3.4L-4.1 6L-3 1.3L-6.5-1.8L-1.9-2.1z",
  cross: "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
  x: "M-4.5-6L0-1.5L4.5-6L6-4.5L1.5 0L6 4.5L4.5 6L0 1.5L-4.5 6L-6 4.5L-1.5 0L-6-4.5z",
  hexagon: "M-5.5 0L-2.75-5H2.75L5.5 0L2.75 5H-2.75z",
};

/**
 * A chart as wide as said: `{node, marks, x, y}`, with `marks` the points that can be read, from left to right, as
 * `{left, top, about, name}` in pixels, and `x` and `y` the scales, which `charts.js` needs for zooming.
 *
 * `chart`: `{label, x, y, series, empty}`; an axis is `{label, log, zero, names}`, with `zero` true where it has to
 * reach 0, and `names` for categories, whose points have their index as value; `empty` is told where there is no
 * point. A series is `{name, colour, symbol, line, area, points}` with `line` `solid`, `dashed`, `dotted` or null,
 * `area` true for a band between `low` and `high` of `y`. A point is `{x, y, x_low, x_high, y_low, y_high, text,
 * about, kind, size}`; ends that are missing have no bar, `text` stands beside it where there is room, `about` appears
 * where the pointer rests on it, `kind` is a class of its mark and bars, and `size` a
 * factor of its mark.
 * `view`: `{x, y}`, the ranges to show; all there is where it is null.
 */
export function xyChart(chart, { width: wanted, view = null }) {
  const width = Math.max(NARROWEST, wanted);
  const points = chart.series.flatMap((series) => series.points);
  const x = scale(chart.x, points.flatMap((one) => [one.x, one.x_low, one.x_high]), [BOX.left, width - BOX.right], view?.x);
  const y = scale(chart.y, points.flatMap((one) => [one.y, one.y_low, one.y_high]), [HEIGHT - BOX.bottom, BOX.top], view?.y);
  const seen = (one) => !view || (x.holds(one.x) && y.holds(one.y));
  const marks = chart.series.filter(({ area, symbol }) => symbol && !area).flatMap(({ name, points: own }) =>
    own.filter((one) => one.about && present(one.y) && seen(one)).map((one) => ({ left: x(one.x), top: y(one.y), about: one.about, name })));
  marks.sort((a, b) => a.left - b.left || a.top - b.top);
  const clip = freshId("clip");
  const drawn = chart.series.map((series) => group(series, x, y));
  const node = svg(
    "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, class: "xy-chart", role: "img", "aria-label": chart.label },
    axes(x, y, chart, width),
    view && svg("clipPath", { id: clip }, svg("rect", { x: BOX.left, y: BOX.top, width: width - BOX.left - BOX.right, height: HEIGHT - BOX.top - BOX.bottom })),
    svg("g", { "clip-path": view && `url(#${clip})` }, drawn),
    labels(chart.series, x, y, seen),
    points.length === 0 && chart.empty && svg("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, chart.empty),
  );
  return { node, marks, x, y, box: { ...BOX, width, height: HEIGHT } };
}

function group(series, x, y) {
  const points = series.points.filter((one) => series.area || present(one.y));
  const at = (one) => [x(one.x), y(one.y)];
  return svg(
    "g", { data: { variant: series.name }, vars: { "--own": series.colour } },
    series.area && svg("path", { class: "band", d: `${path([...points.map((one) => [x(one.x), y(one.y_high)]), ...points.map((one) => [x(one.x), y(one.y_low)]).reverse()])}Z` }),
    series.line && svg("path", { class: `line ${series.line}`, d: path(points.map(at)) }),
    !series.area && points.map((one) => bars(one, x, y)),
    series.symbol && points.map((one) => {
      const [left, top] = at(one);
      return svg("path", { class: `point ${one.kind ?? ""}`, d: SHAPES[series.symbol] ?? SHAPES.circle, transform: `translate(${left.toFixed(1)} ${top.toFixed(1)}) scale(${one.size ?? 1})` });
    }),
  );
}

/**
 * The texts beside points, each where it covers no other one, and no point if that can be; where there is no such
 * place it is left out, since pointing at the point tells it. Series on top come first.
 */
function labels(series, x, y, seen) {
  const all = series.toReversed().flatMap(({ points, colour }) => points.filter((one) => present(one.y) && seen(one)).map((one) => ({ ...one, colour, left: x(one.x), top: y(one.y) })));
  const marks = all.map(({ left, top }) => [left - 5, top - 5, left + 5, top + 5]);
  const taken = [];
  const free = (box, others) => box[0] >= 2 && box[2] <= x.end + BOX.right && box[1] >= 0 && !others.some((one) => box[0] < one[2] && box[2] > one[0] && box[1] < one[3] && box[3] > one[1]);
  const made = all.filter((one) => one.text).map(({ text, colour, left, top }) => {
    const length = text.length * LETTER;
    const places = [[8, -8], [-8, -8], [8, 16], [-8, 16]].map(([dx, dy]) => {
      const [from, base] = [left + dx - (dx < 0 ? length : 0), top + dy];
      return { x: left + dx, y: base, anchor: dx < 0 ? "end" : "start", box: [from, base - 10, from + length, base + 2] };
    });
    const place = places.find(({ box }) => free(box, [...taken, ...marks])) ?? places.find(({ box }) => free(box, taken));
    if (!place) return null;
    taken.push(place.box);
    return svg("text", { x: place.x, y: place.y, "text-anchor": place.anchor, vars: { "--own": colour } }, text);
  });
  return svg("g", { class: "labels" }, made);
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
function scale({ log, zero, names }, values, [start, end], shown) {
  const [low, high] = shown ?? range(values, { log, zero, names });
  const span = log ? Math.log(high / low) : high - low;
  const least = Number.MIN_VALUE;
  const found = (value) => start + ((log ? Math.log(Math.max(value, shown ? least : low) / low) : value - low) / span) * (end - start);
  found.end = Math.max(start, end);
  found.at = (pixel) => (log ? low * Math.exp((span * (pixel - start)) / (end - start)) : low + (span * (pixel - start)) / (end - start));
  found.holds = (value) => value >= low && value <= high;
  found.ticks = names ? names.map((_, i) => i).filter(found.holds) : log ? logTicks(low, high) : evenTicks(low, high);
  const step = found.ticks.length > 1 ? found.ticks[1] - found.ticks[0] : high - low;
  const digits = log ? 3 : Math.min(12, Math.max(3, 1 + Math.ceil(Math.log10(Math.max(Math.abs(low), Math.abs(high)) / step))));
  found.text = names ? (tick) => names[tick] : (tick) => significant(tick, digits);
  return found;
}

/** All values, with some room at both ends. */
function range(values, { log, zero, names }) {
  if (names) return [-0.5, Math.max(names.length, 1) - 0.5];
  const known = [...values.filter((value) => present(value) && Number.isFinite(value) && (!log || value > 0)), ...(zero ? [0] : [])];
  const [low, high] = known.length ? [Math.min(...known), Math.max(...known)] : [log ? 1 : 0, log ? 10 : 1];
  if (log) {
    const [from, to] = high / low < 1.5 ? [low / 1.5, high * 1.5] : [low, high];
    return [from / (to / from) ** 0.06, to * (to / from) ** 0.06];
  }
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - room, high + room];
}

function logTicks(low, high) {
  const steps = high / low > 300 ? [1] : [1, 2, 5];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const step of steps) ticks.push(step * 10 ** power);
  }
  const found = ticks.filter((tick) => tick >= low && tick <= high);
  return found.length > 2 ? found : evenTicks(low, high);
}

function evenTicks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function axes(x, y, chart, width) {
  const bottom = HEIGHT - BOX.bottom;
  const longest = Math.max(3, ...x.ticks.map((tick) => x.text(tick).length));
  const most = Math.max(2, Math.floor((width - BOX.left) / Math.max(56, longest * LETTER + 14)));
  const thin = (ticks) => ticks.filter((_, i) => i % Math.ceil(ticks.length / most) === 0);
  return svg(
    "g", { class: "axes" },
    thin(x.ticks).map((tick) => [
      svg("line", { x1: x(tick), x2: x(tick), y1: BOX.top, y2: bottom }),
      svg("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, x.text(tick)),
    ]),
    y.ticks.map((tick) => [
      svg("line", { x1: BOX.left, x2: width - BOX.right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: BOX.left - 6, y: y(tick) + 4, "text-anchor": "end" }, y.text(tick)),
    ]),
    svg("text", { x: (BOX.left + width - BOX.right) / 2, y: HEIGHT - 8, "text-anchor": "middle" }, chart.x.label),
    svg("text", { x: 12, y: (BOX.top + bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(BOX.top + bottom) / 2})` }, chart.y.label),
  );
}

/** The outline through points in pixels, for the `d` of a path. */
export function path(points) {
  return points.map(([left, top], i) => `${i ? "L" : "M"}${left.toFixed(1)} ${top.toFixed(1)}`).join("");
}

/** A symbol of a kind, or where there is no kind, a line by its path; for legends. */
export function mark(symbol, kind, colour) {
  return svg(
    "svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, class: "xy-chart-mark", "aria-hidden": "true", vars: { "--own": colour } },
    svg("path", { class: kind === null ? "line" : `point ${kind}`, d: kind === null ? symbol : (SHAPES[symbol] ?? SHAPES.circle) }),
  );
}

/** The chart's figures as a table, for who cannot see it: `table`, or what its points are. */
export function xyTable({ x, y, series, table }) {
  const { columns, rows } = table ?? {
    columns: ["series", x.label, y.label, "label"],
    rows: series.filter((one) => !one.area).flatMap((one) => one.points.map((point) => [one.name, x.names?.[point.x] ?? significant(point.x), point.y, point.text ?? ""])),
  };
  const cell = (value) => (value === null || typeof value === "number" ? significant(value) : value);
  return el(
    "details", { class: "alternative" }, el("summary", {}, "The same as a table"),
    el(
      "div", { class: "scroll" },
      el(
        "table", { class: "table" },
        el("thead", {}, el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, rows.map((row) => el("tr", {}, row.map((value) => el("td", {}, cell(value)))))),
      ),
    ),
  );
}
