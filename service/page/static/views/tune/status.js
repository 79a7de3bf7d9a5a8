// The state of a run: how far it is, and since when it has been silent.

import { counted, duration, el, number, replace } from "../../dom.js";
import { ENDED } from "./words.js";

const PHASES = {
  latency: "measures latency under the stated load",
  trials: "tries settings",
  validation: "measures the finalists again on the validation prompts, with fresh seeds",
  test: "tests the settings that held, once, on the test prompts",
  load: "puts the winner under the stated load",
};
const BADGES = { recommended: ["recommended", "good"], unmet: ["not reached", "warn"], interrupted: ["interrupted", "warn"], failed: ["failed", "bad"] };

export class Status {
  node = el("section", { class: "card stack tight", "aria-labelledby": "tune-status" });
  #heading = el("h2", { id: "tune-status" });
  #badge = el("span", { class: "badge" });
  #words = el("p", {});
  #bar = el("progress", { class: "progress", max: "1", "aria-label": "Trials that have ended" });
  #more = el("div", {});

  constructor() {
    this.node.append(el("div", { class: "row apart" }, this.#heading, this.#badge), this.#words, this.#bar, this.#more);
  }

  show({ report, status, stale, age_s: age, updated, question, trials }) {
    this.#heading.textContent = question;
    const running = status === "running";
    const [badge, kind] = running ? [stale ? "silent" : "running", stale ? "bad" : "accent"] : BADGES[status];
    this.#badge.textContent = badge;
    this.#badge.className = `badge ${kind}`;
    const failures = report?.trials.filter((one) => one.error !== null).length ?? 0;
    const failed = failures > 0 ? `, ${number(failures)} of them failed` : "";
    const planned = report?.search.trials ?? null;
    const of = planned === null ? counted(trials, "trial") : `${number(trials)} of ${counted(planned, "trial")}`;
    const doing = running ? `The run ${PHASES[report?.phase] ?? "goes on"}` : `The run has ended: ${ENDED[status]}`;
    this.#words.textContent = `${doing}. ${of} ${trials === 1 || planned === 1 ? "has" : "have"} ended${failed}.`;
    this.#bar.hidden = !running || planned === null;
    this.#bar.value = planned ? Math.min(1, trials / planned) : 0;
    replace(
      this.#more,
      report?.error && el("p", { class: "error small" }, report.error),
      running && stale && el("p", { class: "notice small" }, "No news since ", moment(updated), `, for ${duration(age * 1000)}: it may have died. The same command, with its --out, goes on where it was.`),
      running && !stale && el("p", { class: "muted small" }, `Reported ${duration(age * 1000)} ago.`),
      ["interrupted", "failed"].includes(status) && el("p", { class: "muted small" }, "The same command, with its --out, goes on where it was; nothing below was tested on other prompts unless it says so."),
      report?.notes.length > 0 && el("ul", { class: "notes small muted" }, report.notes.map((note) => el("li", {}, note))),
    );
  }
}

function moment(time) {
  const words = new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  return el("time", { datetime: time }, words);
}
