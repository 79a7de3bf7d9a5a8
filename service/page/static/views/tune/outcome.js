// The best setting: so far, with its lower bound, or at the end, with what to do with it.

import { comparison } from "../../comparison.js";
import { counted, el, replace } from "../../dom.js";
import { styleOf } from "../../styles.js";
import { block } from "../play/code.js";
import { GAINS, bound, holds, interval, price } from "./words.js";

export class Outcome {
  node = el("section", { class: "card stack", "aria-labelledby": "tune-outcome" });
  #onApply;
  #told = "";

  /** `onApply`: given `recommended` or `measured`. */
  constructor({ onApply }) {
    this.#onApply = onApply;
  }

  show({ report, has_table: hasTable, applied, rolls_out: rollsOut }) {
    const { recommended, best, question, serve, out, status } = report;
    const told = JSON.stringify([recommended, best, serve, out, status, hasTable, applied, rollsOut]);
    if (told === this.#told) return; // so that a button keeps its focus
    this.#told = told;
    const shown = recommended ?? best;
    replace(
      this.node,
      el("h2", { id: "tune-outcome" }, recommended ? "Recommended" : "Best so far"),
      shown === null
        ? el("p", { class: "muted" }, "No setting is measured yet.")
        : el("div", { class: "stack tight" }, this.#figures(question, shown, recommended !== null)),
      (recommended || (status !== "running" && hasTable)) && this.#applying({ recommended, hasTable, applied, rollsOut, status }),
      serve && permanent(serve, out),
    );
  }

  #figures(question, setting, tested) {
    const gain = setting.gains[question.metric];
    const where = tested ? `on ${counted(gain.count, "test prompt")}` : "on the tuning prompts, where it was chosen, so it may be flattered";
    const met = holds(setting);
    return [
      el("p", { class: "headline" }, el("span", { class: "swatch", vars: { "--own": `var(${styleOf(setting.mode).series})` }, "aria-hidden": "true" }), setting.label),
      el("p", { class: "row" }, el("span", { class: `badge ${met ? "good" : "warn"}` }, met ? "meets the target" : "misses"), bound(question, setting)),
      el("p", {}, `${GAINS[question.metric]} ${interval(gain)} ${where}; ${price(question, setting.price)} an answer.`),
    ];
  }

  /** What a running server can do: give mode auto this setting, or all that were measured. */
  #applying({ recommended, hasTable, applied, rollsOut, status }) {
    if (!hasTable) {
      return el("p", { class: "muted small" }, status === "running" ? "It can be applied when the run has ended." : "The run has not sent its table, so it can only be applied from its files, with PUT /auto/table.");
    }
    const button = (settings, words, kind) =>
      el("button", { type: "button", class: `button ${kind}`, disabled: applied === settings, on: { click: () => this.#onApply(settings) } }, words);
    const inUse = {
      recommended: "In use: mode auto answers with this setting alone.",
      measured: "In use: mode auto chooses among all settings of this run.",
    }[applied];
    return el(
      "div", { class: "stack tight" },
      el("h3", {}, "Apply"),
      inUse && el("p", { class: "row" }, el("span", { class: "badge good" }, "applied"), `${inUse} `, el("a", { href: comparison.link("play") }, "Ask it in Play")),
      el(
        "div", { class: "row" },
        recommended && button("recommended", "Answer mode auto with this setting", "primary"),
        button("measured", "Let mode auto choose among all measured settings", recommended ? "" : "primary"),
      ),
      el(
        "p", { class: "muted small" },
        "From now on and after a restart, in the place of the table that mode auto has. Chosen among all, a request's budget of tokens, money or reward decides, and without one the highest reward less the server's prices.",
        rollsOut && " This server rolls out checkpoints, so only requests with a budget are answered by the table.",
      ),
    );
  }
}

/** A running server cannot change its default mode; a new start can. */
function permanent(serve, out) {
  return el(
    "details", { class: "tune-serve" }, el("summary", {}, "Serve it as the default mode"),
    el(
      "div", { class: "stack tight" },
      el("p", { class: "small" }, "A running server cannot change its default mode. Start it anew with this configuration, and requests that name no mode get the setting."),
      block("command", `vbon serve --config ${quoted(`${out}/serve.toml`)}`),
      block("serve.toml", serve),
    ),
  );
}

/** A word of a shell command. */
export function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
