// What was measured again: the finalists with fresh seeds on other prompts, and the winner under load.

import { comparison } from "../../comparison.js";
import { duration, el, number, replace, significant } from "../../dom.js";
import { GAINS, bound, gainOf, holds, interval, price } from "./words.js";

const STAGES = { validation: "validation", test: "test" };

export class Checks {
  node = el("section", { class: "card stack tight", "aria-labelledby": "tune-checks" });

  show({ report }) {
    const { checks, stress, question } = report;
    this.node.hidden = checks.length === 0 && stress.length === 0;
    if (this.node.hidden) return;
    const metric = gainOf(report, comparison.values.judge);
    const head = (name, kind) => el("th", { scope: "col", class: kind }, name);
    const table = el(
      "table", { class: "table figures tune-table" },
      el("caption", { class: "unseen" }, "Settings measured again"),
      el("thead", {}, el("tr", {}, head("setting"), head("prompts"), head("trial", "num"), head(GAINS[metric], "num"), head("price", "num"), head("outcome"))),
      el("tbody", {}, checks.map((one) => row(one, metric, question))),
    );
    replace(
      this.node,
      el("h2", { id: "tune-checks" }, "Measured again with fresh seeds"),
      el("p", { class: "muted small" }, "The best of many trials looks better than it is. These figures come from other prompts and other seeds; those of the test were looked at once."),
      checks.length > 0 && el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Settings measured again" }, table),
      stress.length > 0 && el("ul", { class: "notes small" }, stress.map((one) => el("li", {}, underLoad(one, question)))),
    );
  }
}

function row({ stage, trial, setting }, metric, question) {
  const gain = setting.gains[metric];
  return el(
    "tr", {}, el("th", { scope: "row" }, setting.label), el("td", {}, STAGES[stage]), el("td", { class: "num" }, trial === null ? "–" : number(trial)),
    el("td", { class: "num" }, gain ? interval(gain) : "–"), el("td", { class: "num" }, price(question, setting.price)),
    el("td", { title: bound(question, setting) }, el("span", { class: `badge ${holds(setting) ? "good" : "warn"}` }, holds(setting) ? "holds" : "misses")),
  );
}

function underLoad({ label, failure, p95_ms: p95, answers_per_s: rate, requests, failed }, question) {
  const load = question.load ? `Under the stated load (${question.load})` : "Under the stated load";
  if (failure !== null) return `${load}, ${label} did not hold: ${failure}.`;
  return `${load}, ${label} had a p95 of ${duration(p95)} and ${significant(rate)} answers/s; ${number(failed)} of ${number(requests + failed)} requests failed.`;
}
