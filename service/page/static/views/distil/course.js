// Win rate, reward and KL from checkpoint to checkpoint.

import { plot } from "../../charts.js";
import { el, number } from "../../dom.js";

const HELD_OUT = "var(--series-1)";
const SHADOWED = "var(--series-2)";
const BEST_OF_N = "var(--series-6)";

export class Course {
  #winRate = el("div", {});
  #reward = el("div", {});
  #kl = el("div", {});
  #told = "";
  #found = null;

  constructor() {
    const card = (name, hint, node) =>
      el("section", { class: "card stack tight", "aria-label": name }, el("h2", {}, name), el("p", { class: "muted small" }, hint), node);
    this.node = el(
      "div", { class: "grid distil-charts", hidden: true },
      card("Win rate by checkpoint", "Over one sample of the reference: on held-out prompts, with intervals, and of the answers compared since.", this.#winRate),
      card("Reward by checkpoint", "Mean on held-out prompts, with intervals.", this.#reward),
      card("KL by checkpoint", "From the reference, on held-out prompts.", this.#kl),
    );
  }

  show(rollout) {
    const checkpoints = rollout.checkpoints.toReversed();
    const { threshold, n } = rollout;
    this.#found = { checkpoints, threshold, n };
    this.node.hidden = checkpoints.length === 0;
  }

  /** Draws what has changed. */
  shown() {
    if (this.node.hidden || !this.node.isConnected) return;
    const drawn = [
      [this.#winRate, winRates(this.#found)],
      [this.#reward, heldOut(this.#found, "reward", "Reward", "mean reward", "")],
      [this.#kl, heldOut(this.#found, "kl_nats", "KL", "KL, nats", " nats")],
    ];
    const told = JSON.stringify(drawn.map(([, { label }]) => label));
    if (told === this.#told) return;
    this.#told = told;
    for (const [node, chart] of drawn) plot(node, chart);
  }
}

function winRates({ checkpoints, threshold, n }) {
  const ids = checkpoints.map((one) => one.id);
  const own = checkpoints.map((one) => one.decision.figures.candidate.win_rate);
  const best = checkpoints.map((one) => one.decision.figures.bon.win_rate.mean);
  const live = checkpoints.map((one) => one.evidence.win_rate);
  const compared = {
    name: "answers compared", colour: SHADOWED, symbol: "diamond", line: null,
    points: live.map((y, x) => ({ x, y, kind: "open", about: `${ids[x]}, answers compared\nwin rate ${number(y, 3)}` })).filter(({ y }) => y !== null),
  };
  return {
    label: `Win rate by checkpoint: ${checkpoints.map((one, i) => `${one.id}: ${number(own[i].mean, 3)}${live[i] === null ? "" : `, compared ${number(live[i], 3)}`}`).join("; ")}`,
    ...axes(ids, "win rate"),
    series: [
      level(best, `best-of-${n}`, "dotted"), level(ids.map(() => threshold), "required", "dashed"),
      measured(ids, own, "held-out prompts", "win rate", 3), compared,
    ],
    table: { columns: ["checkpoint", "held out", "compared", `best-of-${n}`, "required"], rows: ids.map((id, i) => [id, own[i].mean, live[i], best[i], threshold]) },
  };
}

/** A figure of the checkpoints beside that of best-of-N, all on held-out prompts. */
function heldOut({ checkpoints, n }, field, name, axis, unit) {
  const ids = checkpoints.map((one) => one.id);
  const own = checkpoints.map((one) => one.decision.figures.candidate[field]);
  const best = checkpoints.map((one) => one.decision.figures.bon[field].mean);
  return {
    label: `${name} by checkpoint: ${checkpoints.map((one, i) => `${one.id}: ${number(own[i].mean, 2)}${unit}`).join("; ")}`,
    ...axes(ids, axis),
    series: [level(best, `best-of-${n}`, "dotted"), measured(ids, own, "checkpoint", axis, 2)],
    table: { columns: ["checkpoint", axis, `best-of-${n}`], rows: ids.map((id, i) => [id, own[i].mean, best[i]]) },
  };
}

function axes(names, label) {
  return { x: { label: "checkpoint", names }, y: { label } };
}

/** A figure that each checkpoint is held against; with one checkpoint, as wide as its place. */
function level(values, name, line) {
  const points = values.length > 1 ? values.map((y, x) => ({ x, y })) : values.flatMap((y) => [{ x: -0.4, y }, { x: 0.4, y }]);
  return { name, colour: BEST_OF_N, symbol: null, line, points };
}

function measured(ids, found, name, axis, digits) {
  return {
    name, colour: HELD_OUT, symbol: "circle", line: "solid",
    points: found.map(({ mean, low, high }, x) => ({
      x, y: mean, y_low: low, y_high: high, about: `${ids[x]}, ${name}\n${axis} ${number(mean, digits)} [${number(low, digits)}, ${number(high, digits)}]`,
    })),
  };
}
