// The command that tunes for what the page compares now.

import { apiKey, located } from "../../api.js";
import { comparison } from "../../comparison.js";
import { decision } from "../../decision.js";
import { el, replace } from "../../dom.js";
import { verdictOf } from "../../verdict.js";
import { block } from "../play/code.js";
import { quoted } from "./outcome.js";

export class Command {
  node = el("section", { class: "card stack tight", "aria-labelledby": "tune-command" });
  #told = "";

  /** `report`: of the run on the page; null where there is none. */
  show(modes, report) {
    const { target, text } = commandOf(modes);
    const told = JSON.stringify([text, report === null, report?.question.target]);
    if (told === this.#told) return;
    this.#told = told;
    const asked = report?.question.target ?? null;
    replace(
      this.node,
      el("h2", { id: "tune-command" }, report === null ? "No run of vbon tune has reported to this server" : "Tune for this comparison"),
      el(
        "p", {},
        report === null
          ? `It finds the cheapest mode, policy, N and sampling with ${target}, measures the winner again on other prompts and under load, and shows each trial here as it comes. In a terminal:`
          : asked === target ? "The run above asks for the same target as the comparison of this page:" : `The run above asks for ${asked ?? "the highest gain within limits"}; the comparison of this page asks for ${target}:`,
      ),
      block("command", text),
      el("p", { class: "muted small" }, el("code", {}, "--prompts FILE"), " takes prompts of your own, ", el("code", {}, "--budget 30m"), " ends it in time.", apiKey() !== null && [" Set ", el("code", {}, "VBON_REMOTE_API_KEY"), " to an admin's key, so that the run is shown here."]),
    );
  }
}

/** The target and the command, by the comparison's judge, N, price and latency limit. */
export function commandOf(modes) {
  const { judge, price, p95, n } = comparison.values;
  const verdict = decision.found === null ? null : verdictOf(decision.found, comparison.values);
  const drawn = n ?? verdict?.sampled.side.n ?? Math.max(...modes.modes.filter((mode) => mode.name === "bon").map((mode) => mode.default_n), 1);
  const metric = judge === "gold" && modes.gold_model !== null ? "gold" : "reward";
  const target = `${metric} >= best-of-${Math.min(drawn, modes.limits.max_n)}`;
  const words = [
    "vbon tune", "--url", quoted(located("/").replace(/\/$/, "")), "--target", quoted(target),
    ...(price === null ? ["--minimise tokens"] : ["--minimise cost --price-per-hour", String(price)]),
    ...(p95 === null ? [] : ["--p95-ms", String(p95)]),
  ];
  return { target, text: words.join(" ") };
}
