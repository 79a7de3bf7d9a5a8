// Every trial that has ended, the newest first.

import { comparison } from "../../comparison.js";
import { counted, el, number, replace } from "../../dom.js";
import { GAINS, gainOf, holds, interval, price } from "./words.js";

export class Trials {
  node = el("section", { class: "card stack tight", "aria-labelledby": "tune-trials" });
  #heading = el("h2", { id: "tune-trials" }, "Trials");
  #hint = el("p", { class: "muted small" });
  #gain = el("th", { scope: "col", class: "num" });
  #rows = el("tbody", {});
  #scroll;

  constructor() {
    const head = (name, kind) => el("th", { scope: "col", class: kind }, name);
    const table = el(
      "table", { class: "table figures tune-table" },
      el("caption", { class: "unseen" }, "Trials, the newest first"),
      el("thead", {}, el("tr", {}, head("trial"), head("tried"), head("best setting"), this.#gain, head("price", "num"), head("outcome"), head("measured again"))),
      this.#rows,
    );
    this.#scroll = el("div", { class: "scroll tune-trials", tabindex: "0", role: "region", "aria-label": "All trials" }, table);
    this.node.append(this.#heading, this.#hint, this.#scroll);
  }

  show({ report }) {
    const metric = gainOf(report, comparison.values.judge);
    const { trials, trials_done: done, question, settings_measured: measured } = report;
    this.#gain.textContent = GAINS[metric];
    const left = done - trials.length;
    this.#hint.textContent =
      trials.length === 0
        ? "None has ended yet. Each is listed here as soon as it has."
        : `${counted(measured, "setting")} measured; a drawing gives many, of which its best is listed.${left > 0 ? ` The first ${number(left)} trials are in tune.json alone.` : ""}`;
    this.#scroll.hidden = trials.length === 0;
    const again = new Map();
    for (const one of report.checks) if (one.trial !== null) again.set(one.trial, one.stage === "test" ? "tested" : (again.get(one.trial) ?? "validated"));
    replace(this.#rows, trials.toReversed().map((one) => row(one, metric, question, again.get(one.number))));
  }
}

function row({ number: place, tried, best, error }, metric, question, again) {
  const head = el("th", { scope: "row", class: "place" }, number(place));
  if (error !== null) {
    return el("tr", {}, head, el("td", {}, tried), el("td", { colspan: 3, class: "why" }, error), el("td", {}, badge("failed", "bad")), el("td", {}));
  }
  const gain = best.gains[metric];
  return el(
    "tr", {}, head, el("td", {}, tried), el("td", {}, best.label),
    el("td", { class: "num" }, gain ? interval(gain) : "–"), el("td", { class: "num" }, price(question, best.price)),
    el("td", {}, holds(best) ? badge("holds", "good") : badge("misses", "warn")),
    el("td", {}, again ?? ""),
  );
}

function badge(words, kind) {
  return el("span", { class: `badge ${kind}` }, words);
}
