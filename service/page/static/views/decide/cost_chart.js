// What so many answers cost with either: two lines with the range over rounds, on logarithmic axes.

import { el, replace, significant, svg } from "../../dom.js";
import { styleOf } from "../../styles.js";
import { path } from "../../xy_chart.js";

const HEIGHT = 320;
const [NARROWEST, WIDEST] = [280, 1100];
const BOX = { left: 56, right: 16, top: 20, bottom: 44 };
const POINTS = 48;

/** The chart as wide as its node is now, so that its text keeps its size, and the same as a table. */
export function costChart(node, verdict) {
  const width = Math.min(WIDEST, Math.max(NARROWEST, node.clientWidth));
  const { pair, tuned, sampled, training, volume, paysAfter, currency } = verdict;
  if (tuned.cost === null || sampled.cost === null) {
    replace(node, el("p", { class: "muted" }, "No load that was measured keeps this latency limit on both sides, so there are no two costs to draw."));
    return;
  }
  const fixed = training ?? 0;
  const [from, to] = span(volume, paysAfter);
  const lines = [
    { name: pair.tuned, fixed, ...tuned, ...styleOf(pair.tuned) },
    { name: pair.sampled, fixed: 0, ...sampled, ...styleOf(pair.sampled) },
  ];
  const costs = lines.flatMap((line) => [from, to].flatMap((count) => [line.fixed + count * line.low, line.fixed + count * line.high]));
  const x = scale([from, to], [BOX.left, width - BOX.right]);
  const y = scale([Math.min(...costs), Math.max(...costs)], [HEIGHT - BOX.bottom, BOX.top]);
  const counts = Array.from({ length: POINTS + 1 }, (_, i) => from * (to / from) ** (i / POINTS));
  const label = `Cost of so many answers: ${rowsOf(lines, [volume]).map(([, ...totals]) => lines.map((line, i) => `${line.name} ${totals[i]} ${currency}`).join(", ")).join()} for ${significant(volume)} answers`;
  const chart = svg(
    "svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "cost-chart", role: "img", "aria-label": label },
    band(paysAfter, x, to),
    axes(x, y, { width, across: [from, to], up: [Math.min(...costs), Math.max(...costs)], currency }),
    lines.map((line) => [
      svg("path", { class: "band", d: area(line, counts, x, y), vars: { "--own": `var(${line.series})` } }),
      svg("path", { class: "line", d: path(counts.map((count) => [x(count), y(line.fixed + count * line.cost)])), vars: { "--own": `var(${line.series})` } }),
    ]),
    svg("line", { class: "volume", x1: x(volume), x2: x(volume), y1: BOX.top, y2: HEIGHT - BOX.bottom }),
    lines.map((line) => svg("circle", { class: "dot", cx: x(volume), cy: y(line.fixed + volume * line.cost), r: 4, vars: { "--own": `var(${line.series})` } })),
  );
  const legend = el(
    "div", { class: "row small legend" },
    lines.map((line) => el("span", {}, el("span", { class: "swatch", vars: { "--own": `var(${line.series})` }, "aria-hidden": "true" }), line.name)),
    paysAfter.point !== null && el("span", {}, el("span", { class: "swatch pays", "aria-hidden": "true" }), "pays from here"),
  );
  const decades = [volume / 100, volume / 10, volume, volume * 10, volume * 100].map((count) => Number(count.toPrecision(3)));
  const table = el(
    "details", { class: "alternative" }, el("summary", {}, "The same as a table"),
    el(
      "div", { class: "scroll" },
      el(
        "table", { class: "table" },
        el("thead", {}, el("tr", {}, ["answers", ...lines.map((line) => `${line.name}, ${currency}`)].map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, rowsOf(lines, decades).map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell))))),
      ),
    ),
  );
  const open = node.querySelector("details")?.open ?? false;
  table.open = open;
  replace(node, legend, chart, table);
}

function rowsOf(lines, counts) {
  return counts.map((count) => [
    significant(count), ...lines.map((line) => significant(line.fixed + count * line.cost)),
  ]);
}

/** From well below the break-even point and the volume to well above both. */
function span(volume, { point, low, high }) {
  const known = [volume, ...(point === null ? [] : [low, high ?? point])].map((count) => Math.max(count, 1e-3));
  return [Math.min(...known) / 20, Math.max(...known) * 20];
}

function scale([from, to], [start, end]) {
  const wide = Math.log(to / from) || 1;
  return (value) => start + (Math.log(Math.max(value, from / 1e6) / from) / wide) * (end - start);
}

function band({ point, low, high }, x, to) {
  if (point === null) return null;
  const [start, end] = [x(low), x(Math.min(high ?? to, to))];
  return svg("rect", { class: "pays", x: start, width: Math.max(2, end - start), y: BOX.top, height: HEIGHT - BOX.top - BOX.bottom });
}

function axes(x, y, { width, across, up, currency }) {
  const most = Math.floor(width / 64);
  const ticks = (range) => decades(range).filter((_, i, all) => i % Math.ceil(all.length / most) === 0);
  return svg(
    "g", { class: "axes" },
    ticks(across).map((count) => [
      svg("line", { x1: x(count), x2: x(count), y1: BOX.top, y2: HEIGHT - BOX.bottom }),
      svg("text", { x: x(count), y: HEIGHT - BOX.bottom + 16, "text-anchor": "middle" }, brief(count)),
    ]),
    ticks(up).map((cost) => [
      svg("line", { x1: BOX.left, x2: width - BOX.right, y1: y(cost), y2: y(cost) }),
      svg("text", { x: BOX.left - 6, y: y(cost) + 4, "text-anchor": "end" }, brief(cost)),
    ]),
    svg("text", { x: (BOX.left + width - BOX.right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "answers served"),
    svg("text", { x: BOX.left - 6, y: BOX.top - 8, "text-anchor": "end" }, currency),
  );
}

function decades([from, to]) {
  const found = [];
  for (let power = Math.ceil(Math.log10(from)); power <= Math.floor(Math.log10(to)); power += 1) found.push(10 ** power);
  return found;
}

function brief(value) {
  return new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
}

function area(line, counts, x, y) {
  const upper = counts.map((count) => [x(count), y(line.fixed + count * line.high)]);
  const lower = counts.map((count) => [x(count), y(line.fixed + count * line.low)]).reverse();
  return `${path([...upper, ...lower])}Z`;
}
