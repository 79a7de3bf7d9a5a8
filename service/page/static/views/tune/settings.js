// What the run was asked, how its optimiser searches, and what it measures.

import { duration, el, number, replace } from "../../dom.js";

export class Settings {
  node = el("section", { class: "card stack tight", "aria-labelledby": "tune-settings" });
  #facts = el("dl", { class: "tune-facts" });
  #space = el("code", {});
  #details;

  constructor({ onRemove }) {
    this.#details = el("details", {}, el("summary", {}, "Search space"), el("pre", { class: "scroll small", tabindex: "0", "aria-label": "Search space" }, this.#space));
    this.node.append(
      el("h2", { id: "tune-settings" }, "How it searches"), this.#facts, this.#details,
      el("div", { class: "row end" }, el("button", { type: "button", class: "button slim", on: { click: onRemove } }, "Remove this run")),
    );
  }

  show({ id, report }) {
    this.#details.hidden = !report?.search.space;
    if (!report) return;
    const { question, search } = report;
    this.#space.textContent = search.space;
    const limits = [
      question.p95_ms !== null && `p95 at most ${duration(question.p95_ms)}`,
      question.max_tokens_per_answer !== null && `at most ${number(question.max_tokens_per_answer)} tokens an answer`,
    ].filter(Boolean);
    const facts = [
      ["Target", question.target ?? `the highest ${question.metric} within the limits`],
      ["Target on the tuning prompts", question.target !== null && question.level !== null && number(question.level, 3)],
      ["Limits", limits.join(", ")],
      ["Price", question.price_per_hour === null ? question.price : `${question.price}, at ${question.price_per_hour} ${question.currency} an hour`],
      ["Stated load", question.load],
      ["Optimiser", `${search.sampler}, seed ${search.seed}`],
      ["Trials", search.trials === null ? "until the budget is spent" : number(search.trials)],
      ["Time budget", search.budget_s !== null && duration(search.budget_s * 1000)],
      ["At once", search.workers > 1 && number(search.workers)],
      ["Finalists", number(search.finalists)],
      ["Prompts", Object.entries(search.prompts).map(([use, count]) => `${number(count)} to ${use}`).join(", ")],
      ["Policies", Object.keys(report.policies).join(", ")],
      ["Hardware", report.hardware],
      ["Results", report.out],
      ["Id", id],
    ];
    replace(this.#facts, facts.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }
}
