// The loop that trains: the round's step, how much of it is done, and the time left.

import { duration, el, number, percent, replace } from "../../dom.js";

const PHASES = {
  collect: "waits for prompts",
  seal: "seals the answers",
  cache: "makes the reward cache",
  top_up: "draws more samples",
  train: "trains",
  compare: "compares on held-out prompts",
  decide: "decides",
  submit: "submits the checkpoint",
  done: "is done",
};

export class Progress {
  node = el("section", { class: "card stack tight", hidden: true, "aria-labelledby": "progress-title" });

  /** `reported`: as the server tells it, or null where it does not know. */
  show(reported) {
    const progress = reported?.progress;
    this.node.hidden = !progress;
    if (!progress) return;
    const { round, phase, done, of, left_s: left } = progress;
    const ended = phase === "stopped";
    const share = of ? (done ?? 0) / of : null;
    const known = share !== null && !ended;
    replace(
      this.node,
      el("div", { class: "row apart" }, el("h2", { id: "progress-title" }, "Training loop"), reported.stale && el("span", { class: "badge bad" }, "silent")),
      el("p", {}, ended ? `The loop has ended after round ${round}.` : `Round ${round} ${PHASES[phase] ?? `is at ${phase}`}.`),
      known && el("progress", { class: "progress", max: "1", value: share, "aria-label": "Progress of this step" }),
      known && el("p", { class: "muted small" }, `${number(done ?? 0)} of ${number(of)} (${percent(share)})${left === null || left === undefined || reported.stale ? "" : `, about ${duration(left * 1000)} left`}`),
      reported.stale && el("p", { class: "notice small" }, `The loop has not reported for ${duration(reported.age_s * 1000)}; it may have died. The command vbon distil run goes on where it was.`),
    );
  }
}
