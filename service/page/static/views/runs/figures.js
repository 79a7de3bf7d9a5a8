// A load test's result: the decision in words, two plots, two tables.

import { el, number, percent, replace, significant } from "../../dom.js";
import { plot } from "../../charts.js";
import { reportLink } from "./report.js";
import { latencyPlot, rewardPlot } from "./plots.js";

export class Figures {
  #words = el("div", {});
  #latency = el("div", {});
  #reward = el("div", {});
  #cells = el("div", {});
  #worth = el("div", {});
  #charts;
  #state = el("div", {});
  #result = null;

  constructor() {
    const card = (name, hint, ...parts) =>
      el("section", { class: "card stack tight", "aria-label": name }, el("h2", {}, name), el("p", { class: "muted small" }, hint), ...parts);
    this.#charts = el(
      "div", { class: "stack", hidden: true },
      this.#words,
      el(
        "div", { class: "grid charts" },
        card("Throughput and latency", "A line a mode along its load levels: the full line is p95, the dotted one p50. Right and down is better.", this.#latency),
        card("Reward and cost", "Mean reward with its 95% interval over prompts; cost at the highest throughput measured. Up and left is better.", this.#reward),
      ),
      card("Speed", "Medians over rounds, percentiles over all requests. TTFT of an answer in one piece is the time of all of it.", this.#cells),
      card("Worth", "Scored apart from the clock, on the same prompts. The reward is the one that best-of-N selects by, which flatters it.", this.#worth),
    );
    this.node = el("section", { class: "stack", "aria-label": "What was measured" }, this.#state, this.#charts);
    this.nothing();
  }

  nothing() {
    this.#empty(
      el("p", {}, "Nothing is measured yet."),
      el("p", { class: "small" }, "A load test asks this server in each mode in turns, and shows what an answer costs and what it is worth."),
    );
  }

  waiting() {
    this.#empty(el("p", {}, "The first figures come with the first finished block."));
  }

  #empty(...words) {
    this.#result = null;
    this.#charts.hidden = true;
    replace(this.#state, el("div", { class: "empty" }, words));
  }

  /** Plots that were drawn while the view was away have no size. */
  shown() {
    if (this.#result) this.#draw(this.#result);
  }

  show(result, { growing }) {
    this.#result = result;
    replace(this.#state);
    this.#charts.hidden = false;
    replace(this.#words, words(result, growing));
    replace(this.#cells, cellTable(result));
    replace(this.#worth, worthTable(result));
    this.#draw(result);
  }

  #draw(result) {
    if (!this.node.isConnected) return;
    plot(this.#latency, latencyPlot(result));
    plot(this.#reward, rewardPlot(result));
  }
}

function words(result, growing) {
  const [first, ...others] = result.decision;
  const warnings = result.warnings.filter((text) => !growing || !text.startsWith("The run was interrupted"));
  return el(
    "section", { class: "card stack tight decision", "aria-label": "In words" },
    el(
      "div", { class: "row apart" },
      el("h2", {}, growing ? "So far" : "What it says"),
      el("span", { class: "row" }, el("span", { class: "mono muted" }, result.id), !growing && reportLink(result.id, "Open the report")),
    ),
    first && el("p", { class: "first" }, first),
    others.map((text) => el("p", {}, text)),
    warnings.length > 0 &&
      el("details", {}, el("summary", {}, `Warnings (${warnings.length})`), el("ul", { class: "small" }, warnings.map((text) => el("li", {}, text)))),
  );
}

/** Columns whose figures nobody has are left out. */
function table(caption, columns, rows) {
  const kept = columns.filter(({ of, always }) => always || rows.some((row) => of(row) !== null));
  const head = kept.map(({ name }, i) => el("th", { scope: "col", class: i ? "num" : null }, name));
  const body = rows.map((row) =>
    el("tr", {}, kept.map(({ of }, i) => (i ? el("td", { class: "num" }, of(row) ?? "–") : el("th", { scope: "row" }, of(row))))),
  );
  return el(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", { class: "table figures" }, el("caption", { class: "unseen" }, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)),
  );
}

const ms = (value) => number(value, value < 10 ? 1 : 0);
const pair = (found) => (found ? `${ms(found.p50)} / ${ms(found.p95)}` : null);
const rate = (value) => number(value, value < 10 ? 2 : value < 100 ? 1 : 0);
// The share of the answers that max_tokens ended; runs of earlier versions do not have it.
const cutOff = (found) => ((found.truncated_share ?? null) === null ? null : percent(found.truncated_share));
const failed = (cell) => Object.values(cell.errors).reduce((sum, count) => sum + count, 0);

export function loadText(cell) {
  return cell.load_kind === "closed" ? `${number(cell.load)} in flight` : `${cell.load}/s`;
}

function cellTable(result) {
  const errors = (cell) =>
    failed(cell) ? Object.entries(cell.errors).map(([kind, count]) => `${number(count)} ${kind}`).join(", ") : null;
  return table("Speed of each mode at each load", [
    { name: "mode", of: (c) => c.variant, always: true },
    { name: "load", of: loadText, always: true },
    { name: "requests/s", of: (c) => rate(c.requests_per_s.median), always: true },
    { name: "E2E p50 / p95, ms", of: (c) => pair(c.e2e_ms), always: true },
    { name: "TTFT p50 / p95, ms", of: (c) => pair(c.ttft_ms) },
    { name: "TPOT p50 / p95, ms", of: (c) => pair(c.tpot_ms) },
    { name: "goodput/s", of: (c) => c.goodput_per_s && rate(c.goodput_per_s.median) },
    { name: "tokens/s generated", of: (c) => number(c.generated_tokens_per_s.median) },
    { name: "returned", of: (c) => number(c.returned_tokens_per_s.median) },
    { name: "queue p95, ms", of: (c) => c.queue_ms && ms(c.queue_ms.p95) },
    { name: "rerank p95, ms", of: (c) => c.rerank_ms && ms(c.rerank_ms.p95) },
    { name: "answered", of: (c) => number(c.requests), always: true },
    { name: "cut off", of: (c) => cutOff(c) },
    { name: "failed", of: errors },
  ], result.cells);
}

function worthTable(result) {
  if (result.quality.length === 0) {
    const none = result.settings.quality_prompts === 0;
    return el("p", { class: "muted" }, none ? "This run scores no answers." : "Answers are scored after the first round.");
  }
  const costs = new Map(result.costs.map((cost) => [cost.variant, cost]));
  const interval = (found, digits = 2) =>
    found && [number(found.mean, digits), " ", el("span", { class: "muted small" }, `${number(found.low, digits)} to ${number(found.high, digits)}`)];
  const share = (found) =>
    found && [percent(found.mean), " ", el("span", { class: "muted small" }, `${number(found.low * 100)} to ${number(found.high * 100)}`)];
  return table("What each mode's answers are worth and cost", [
    { name: "mode", of: (q) => q.variant, always: true },
    { name: "mean reward", of: (q) => interval(q.reward), always: true },
    { name: `win rate against ${result.settings.baseline}`, of: (q) => share(q.win_rate) },
    { name: `${result.settings.currency} per 1,000 answers`, of: (q) => costs.has(q.variant) ? significant(costs.get(q.variant).per_1000) : null },
    { name: "scored", of: (q) => number(q.answers), always: true },
    { name: "cut off", of: (q) => cutOff(q) },
    { name: "not scored", of: (q) => (q.unscored ? number(q.unscored) : null) },
  ], result.quality);
}
