// The gain against the price: the best setting of each trial, what was measured again, and the front.

import { plot } from "../../charts.js";
import { comparison } from "../../comparison.js";
import { counted, el, replace } from "../../dom.js";
import { looksOf } from "../../styles.js";
import { mark, xyTable } from "../../xy_chart.js";
import { GAINS, bound, gainOf, holds, interval, price, priceAxis } from "./words.js";

const KINDS = [
  ["tuned", "holds on the tuning prompts, not measured again"],
  ["missed", "misses the target or a limit"],
  ["again", "measured again with fresh seeds, and holds"],
  ["again missed", "measured again, and misses"],
  ["again recommended", "recommended"],
];
const FAR = 20; // prices that are so many times apart have a logarithmic axis

export class Pareto {
  node = el("section", { class: "card stack tight", "aria-labelledby": "tune-pareto" });
  #heading = el("h2", { id: "tune-pareto" });
  #chart = el("div", {});
  #more = el("div", { class: "stack tight" });

  constructor() {
    this.node.append(this.#heading, this.#chart, this.#more);
  }

  show({ report }) {
    const metric = gainOf(report, comparison.values.judge);
    this.#heading.textContent = `${GAINS[metric][0].toUpperCase()}${GAINS[metric].slice(1)} against ${priceAxis(report.question).label}`;
    const marks = marksOf(report, metric);
    if (marks.length === 0) {
      replace(this.#chart, el("p", { class: "muted" }, "Nothing is measured yet: the first point comes with the first trial."));
      replace(this.#more, failures(report));
      return;
    }
    const chart = chartOf(report, metric, marks);
    plot(this.#chart, chart, { legend: false, table: false });
    replace(this.#more, legend(marks, report), failures(report), xyTable(chart));
  }
}

/** One mark a setting and measurement: `{setting, kind, trial, where}`; those measured again come last, on top. */
function marksOf(report, metric) {
  const { recommended } = report;
  const tested = new Set(report.checks.filter((one) => one.stage === "test").map((one) => one.setting.label));
  const trials = report.trials.filter((one) => one.best).map((one) => ({ setting: one.best, kind: holds(one.best) ? "tuned" : "missed", trial: one.number, where: "tuning" }));
  // A setting that was tested as well is shown by its test alone.
  const again = report.checks
    .filter((one) => one.stage === "test" || !tested.has(one.setting.label))
    .map((one) => ({
      setting: one.setting, trial: one.trial, where: one.stage,
      kind: recommended?.label === one.setting.label && one.stage === "test" ? "again recommended" : holds(one.setting) ? "again" : "again missed",
    }));
  return [...trials, ...again].filter(({ setting }) => setting.price && setting.gains[metric]);
}

function chartOf(report, metric, marks) {
  const { question } = report;
  const axis = priceAxis(question);
  const looks = looksOf(marks.map(({ setting }) => setting.mode));
  const front = report.front.filter((one) => one.price && one.gains[metric]);
  const prices = [...marks.map(({ setting }) => setting), ...front].map((one) => axis.of(one.price.mean));
  const low = Math.min(...prices);
  const high = Math.max(...prices);
  const modes = [...looks].map(([mode, { series, symbol }]) => ({
    name: mode, colour: `var(${series})`, symbol, line: null,
    points: marks.filter(({ setting }) => setting.mode === mode).map((mark) => point(mark, question, metric, axis)),
  }));
  const level = metric === question.metric && question.level !== null && question.target !== null;
  return {
    label: `${GAINS[metric]} against ${axis.label}: ${counted(marks.length, "setting")}`,
    x: { label: axis.label, log: low > 0 && high / low > FAR },
    y: { label: GAINS[metric], log: false },
    series: [
      { name: "front of all settings, on the tuning prompts", colour: "var(--muted)", symbol: null, line: "solid", points: front.map((one) => ({ x: axis.of(one.price.mean), y: one.gains[metric].mean })) },
      level && { name: "target", colour: "var(--text)", symbol: null, line: "dashed", points: [{ x: low, y: question.level }, { x: high, y: question.level, text: low === high ? null : question.target }] },
      ...modes,
    ].filter(Boolean),
  };
}

function point({ setting, kind, trial, where }, question, metric, axis) {
  const gain = setting.gains[metric];
  const [from, to] = [axis.of(setting.price.low), axis.of(setting.price.high)];
  const source = trial === null ? "" : `trial ${trial}, `;
  return {
    x: axis.of(setting.price.mean), x_low: from < to ? from : null, x_high: from < to ? to : null,
    y: gain.mean, y_low: gain.low, y_high: gain.high, kind,
    text: kind.endsWith("recommended") ? "recommended" : null,
    about: `${setting.label} (${source}${where} prompts): ${GAINS[metric]} ${interval(gain)} at ${price(question, setting.price)}. ${bound(question, setting)}`,
  };
}

function legend(marks, report) {
  const looks = looksOf(marks.map(({ setting }) => setting.mode));
  const modes = [...looks].map(([mode, { series, symbol }]) => item(mark(symbol, "again", `var(${series})`), mode));
  const kinds = KINDS.filter(([kind]) => marks.some((one) => one.kind === kind)).map(([kind, words]) => item(mark("circle", kind, "var(--text)"), words));
  const front = report.front.length > 1 && item(mark("M-8 0H8", null, "var(--muted)"), `front of all ${counted(report.settings_measured, "setting")} measured`);
  return el("ul", { class: "legend", "aria-label": "Legend" }, modes, kinds, front);
}

function item(drawn, words) {
  return el("li", {}, drawn, words);
}

/** Failed trials have no figures, so they have no point; they are never drawn as 0. */
function failures(report) {
  const failed = report.trials.filter((one) => one.error !== null);
  const unpriced = report.trials.filter((one) => one.best && !one.best.price).length;
  return [
    failed.length > 0 && el("p", { class: "muted small" }, `${counted(failed.length, "trial")} failed and ${failed.length === 1 ? "has" : "have"} no point: ${failed.map((one) => `trial ${one.number}`).join(", ")}.`),
    unpriced > 0 && el("p", { class: "muted small" }, `${counted(unpriced, "trial")} without a known price ${unpriced === 1 ? "has" : "have"} no point.`),
  ];
}
