// A load test's plots.

import { number, significant } from "../../dom.js";
import { looksOf } from "../../styles.js";
import { loadText } from "./figures.js";

/** Colour and symbol of each variant, the same in both plots. */
function looks(result) {
  return looksOf([...result.cells.map((cell) => cell.variant), ...result.quality.map((one) => one.variant)]);
}

/** Throughput against latency, a line a variant; what `plot` draws. */
export function latencyPlot(result) {
  const lines = [...looks(result)].flatMap(([variant, look]) =>
    ["closed", "open"].map((kind) => ({ variant, look, kind, cells: cellsOf(result, variant, kind) })),
  );
  const drawn = lines.filter(({ cells }) => cells.length > 0);
  const rows = drawn.flatMap(({ variant, cells }) =>
    cells.map((cell) => [variant, loadText(cell), cell.requests_per_s.median, cell.e2e_ms.p50, cell.e2e_ms.p95]),
  );
  return {
    label: `Throughput against latency: ${said(rows)}`,
    x: { label: "requests a second", log: true },
    y: { label: "E2E latency, ms", log: true },
    series: drawn.flatMap((line) => [p50(line), p95(line)]),
    table: { columns: ["mode", "load", "requests/s", "E2E p50, ms", "E2E p95, ms"], rows },
  };
}

function said(rows) {
  return rows.map(([mode, load, rate, , p95]) => `${mode} at ${load}: ${significant(rate)} requests/s, p95 ${number(p95)} ms`).join("; ");
}

function cellsOf(result, variant, kind) {
  const own = result.cells.filter((cell) => cell.variant === variant && cell.load_kind === kind && cell.e2e_ms);
  return own.sort((a, b) => a.load - b.load);
}

function name({ variant, kind }) {
  return kind === "open" ? `${variant}, by rate` : variant;
}

function p50(line) {
  return {
    name: name(line), colour: `var(${line.look.series})`, symbol: null, line: "dotted",
    points: line.cells.map((cell) => ({ x: cell.requests_per_s.median, y: cell.e2e_ms.p50 })),
  };
}

function p95(line) {
  const { look, kind, cells } = line;
  return {
    name: name(line), colour: `var(${look.series})`, symbol: look.symbol, line: kind === "open" ? "dashed" : "solid",
    points: cells.map((cell) => ({
      x: cell.requests_per_s.median, y: cell.e2e_ms.p95, text: kind === "open" ? `${cell.load}/s` : `${cell.load}`, about: about(cell),
    })),
  };
}

function about(cell) {
  const lines = [`${cell.variant}, ${loadText(cell)}`, `${significant(cell.requests_per_s.median)} requests/s`];
  for (const [part, found] of [["E2E", cell.e2e_ms], ["TTFT", cell.ttft_ms], ["TPOT", cell.tpot_ms]]) {
    if (found) lines.push(`${part} p50 ${number(found.p50, 1)}, p95 ${number(found.p95, 1)} ms`);
  }
  return lines.join("\n");
}

/** Mean reward against what an answer costs; what `plot` draws. */
export function rewardPlot(result) {
  const found = looks(result);
  const { currency } = result.settings;
  const costs = new Map(result.costs.map((cost) => [cost.variant, cost]));
  const scored = result.quality.filter((one) => one.reward && costs.has(one.variant));
  const wait = result.settings.quality_prompts === 0 ? "this run scores no answers" : "rewards come after the first round";
  const rows = scored.map((one) => {
    const { mean, low, high } = one.reward;
    return [one.variant, costs.get(one.variant).per_1000, mean, low, high];
  });
  const told = rows.map(([mode, cost, reward]) => `${mode}: ${significant(cost)} per 1,000, reward ${number(reward, 2)}`).join("; ");
  return {
    label: `Reward against cost: ${told || wait}`,
    x: { label: `${currency} per 1,000 answers`, log: true },
    y: { label: "mean reward" },
    empty: wait,
    series: scored.map((one) => {
      const look = found.get(one.variant);
      return { name: one.variant, colour: `var(${look.series})`, symbol: look.symbol, line: null, points: [point(one, costs.get(one.variant), currency)] };
    }),
    table: { columns: ["mode", `${currency} per 1,000`, "mean reward", "low", "high"], rows },
  };
}

function point(one, cost, currency) {
  const { mean, low, high } = one.reward;
  const lines = [one.variant, `${significant(cost.per_1000)} ${currency} per 1,000 answers`, `reward ${number(mean, 2)} [${number(low, 2)}, ${number(high, 2)}]`];
  if (one.win_rate) lines.push(`win rate ${number(one.win_rate.mean, 3)}`);
  return { x: cost.per_1000, x_low: cost.low, x_high: cost.high, y: mean, y_low: low, y_high: high, about: lines.join("\n") };
}
