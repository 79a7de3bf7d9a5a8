// A load test's plots, as traces.

import { colour, plain } from "../../charts.js";
import { number, significant } from "../../dom.js";
import { looksOf } from "../../styles.js";
import { loadText } from "./figures.js";

/** Colour and symbol of each variant, the same in both plots. */
function looks(result) {
  return looksOf([...result.cells.map((cell) => cell.variant), ...result.quality.map((one) => one.variant)]);
}

/** A logarithmic axis with ticks at 1, 2 and 5, or wherever they fit where all is close together. */
function logAxis(title, values) {
  const wide = Math.max(...values) > 4 * Math.min(...values);
  return { type: "log", title: { text: title }, tickformat: ",.3~r", tickangle: 0, ...(wide ? { dtick: "D2" } : { nticks: 4 }) };
}

/** Throughput against latency, a line a variant: `[traces, layout, options]` of `plot`. */
export function latencyPlot(result) {
  const found = looks(result);
  const lines = [...found].flatMap(([variant, look]) =>
    ["closed", "open"].map((kind) => ({ variant, look, kind, cells: cellsOf(result, variant, kind) })),
  );
  const drawn = lines.filter(({ cells }) => cells.length > 0);
  const cells = drawn.flatMap((line) => line.cells);
  const traces = () => drawn.flatMap((line) => [p50(line), p95(line)]);
  const layout = {
    height: 380,
    autosize: true,
    xaxis: logAxis("requests a second", cells.map((cell) => cell.requests_per_s.median)),
    yaxis: logAxis("E2E latency, ms", cells.flatMap((cell) => [cell.e2e_ms.p50, cell.e2e_ms.p95])),
  };
  const rows = drawn.flatMap(({ variant, cells }) =>
    cells.map((cell) => [variant, loadText(cell), cell.requests_per_s.median, cell.e2e_ms.p50, cell.e2e_ms.p95]),
  );
  const table = { columns: ["mode", "load", "requests/s", "E2E p50, ms", "E2E p95, ms"], rows };
  return [traces, layout, { label: `Throughput against latency: ${said(rows)}`, table }];
}

function said(rows) {
  return rows.map(([mode, load, rate, , p95]) => `${mode} at ${load}: ${significant(rate)} requests/s, p95 ${number(p95)} ms`).join("; ");
}

function cellsOf(result, variant, kind) {
  const own = result.cells.filter((cell) => cell.variant === variant && cell.load_kind === kind && cell.e2e_ms);
  return own.sort((a, b) => a.load - b.load);
}

function p50({ look, cells }) {
  return {
    x: cells.map((cell) => cell.requests_per_s.median),
    y: cells.map((cell) => cell.e2e_ms.p50),
    mode: "lines", showlegend: false, hoverinfo: "skip",
    line: { color: colour(look.series), width: 1, dash: "dot" },
  };
}

function p95({ variant, look, kind, cells }) {
  return {
    x: cells.map((cell) => cell.requests_per_s.median),
    y: cells.map((cell) => cell.e2e_ms.p95),
    mode: "lines+markers+text",
    name: plain(kind === "open" ? `${variant}, by rate` : variant),
    text: cells.map((cell) => (kind === "open" ? `${cell.load}/s` : `${cell.load}`)),
    textposition: "top center", textfont: { size: 11 }, cliponaxis: false,
    line: { color: colour(look.series), width: 2, dash: kind === "open" ? "dash" : "solid" },
    marker: { color: colour(look.series), symbol: look.symbol, size: 9 },
    hovertext: cells.map((cell) => hover(cell)),
    hovertemplate: "%{hovertext}<extra></extra>",
  };
}

function hover(cell) {
  const lines = [`${plain(cell.variant)}, ${loadText(cell)}`, `${significant(cell.requests_per_s.median)} requests/s`];
  for (const [name, found] of [["E2E", cell.e2e_ms], ["TTFT", cell.ttft_ms], ["TPOT", cell.tpot_ms]]) {
    if (found) lines.push(`${name} p50 ${number(found.p50, 1)}, p95 ${number(found.p95, 1)} ms`);
  }
  return lines.join("<br>");
}

/** Mean reward against what an answer costs. */
export function rewardPlot(result) {
  const found = looks(result);
  const costs = new Map(result.costs.map((cost) => [cost.variant, cost]));
  const points = result.quality.filter((one) => one.reward && costs.has(one.variant));
  const currency = plain(result.settings.currency);
  const traces = () => points.map((one) => point(one, costs.get(one.variant), found.get(one.variant), currency));
  const wait = result.settings.quality_prompts === 0 ? "this run scores no answers" : "rewards come after the first round";
  const layout = {
    height: 380,
    autosize: true,
    xaxis: {
      ...logAxis(`${currency} per 1,000 answers`, points.map((one) => costs.get(one.variant).per_1000)),
      visible: points.length > 0,
    },
    yaxis: { title: { text: "mean reward" }, visible: points.length > 0 },
    annotations: points.length ? [] : [{ text: wait, showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  };
  const rows = points.map((one) => {
    const cost = costs.get(one.variant);
    return [one.variant, cost.per_1000, one.reward.mean, one.reward.low, one.reward.high];
  });
  const table = { columns: ["mode", `${result.settings.currency} per 1,000`, "mean reward", "low", "high"], rows };
  const label = points.length
    ? `Reward against cost: ${rows.map(([mode, cost, reward]) => `${mode}: ${significant(cost)} per 1,000, reward ${number(reward, 2)}`).join("; ")}`
    : `Reward against cost: ${wait}`;
  return [traces, layout, { label, table }];
}

function point(one, cost, look, currency) {
  const { mean, low, high } = one.reward;
  return {
    x: [cost.per_1000], y: [mean], mode: "markers", name: plain(one.variant),
    marker: { color: colour(look.series), symbol: look.symbol, size: 11 },
    error_x: bars([cost.per_1000, cost.low, cost.high], look),
    error_y: bars([mean, low, high], look),
    hovertext: [
      `${plain(one.variant)}<br>${significant(cost.per_1000)} ${currency} per 1,000 answers` +
        `<br>reward ${number(mean, 2)} [${number(low, 2)}, ${number(high, 2)}]` +
        (one.win_rate ? `<br>win rate ${number(one.win_rate.mean, 3)}` : ""),
    ],
    hovertemplate: "%{hovertext}<extra></extra>",
  };
}

/** Error bars from a value and its two ends. */
export function bars([middle, low, high], look) {
  return {
    type: "data", symmetric: false, array: [high - middle], arrayminus: [middle - low],
    thickness: 1.25, width: 3, color: colour(look.series),
  };
}
