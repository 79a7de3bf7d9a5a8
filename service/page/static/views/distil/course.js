// Win rate, reward and KL from checkpoint to checkpoint.

import { colour, plain, plot } from "../../charts.js";
import { el, number, replace } from "../../dom.js";

const HELD_OUT = "--series-1";
const SHADOWED = "--series-2";
const BEST_OF_N = "--series-6";

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

  /** Draws what has changed; a plot needs a place on the page. */
  shown() {
    if (this.node.hidden || !this.node.isConnected) return;
    const drawn = [
      [this.#winRate, winRates(this.#found)],
      [this.#reward, heldOut(this.#found, "reward", "Reward", "mean reward", "")],
      [this.#kl, heldOut(this.#found, "kl_nats", "KL", "KL, nats", " nats")],
    ];
    const told = JSON.stringify(drawn.map(([, [, , { label }]]) => label));
    if (told === this.#told) return;
    this.#told = told;
    for (const [node, figure] of drawn) {
      plot(node, ...figure).catch((error) => replace(node, el("p", { class: "error" }, error.message)));
    }
  }
}

function winRates({ checkpoints, threshold, n }) {
  const ids = checkpoints.map((one) => one.id);
  const own = checkpoints.map((one) => one.decision.figures.candidate.win_rate);
  const best = checkpoints.map((one) => one.decision.figures.bon.win_rate.mean);
  const live = checkpoints.map((one) => one.evidence.win_rate);
  const traces = () => [
    line(ids, best, `best-of-${n}`, BEST_OF_N, "dot"),
    line(ids, ids.map(() => threshold), "required", BEST_OF_N, "dash"),
    points(ids, own, "held-out prompts", HELD_OUT),
    { x: ids, y: live, mode: "markers", name: "answers compared", cliponaxis: false, marker: { color: colour(SHADOWED), symbol: "diamond-open", size: 11, line: { width: 2 } } },
  ];
  const rows = checkpoints.map((one, i) => [one.id, own[i].mean, live[i], best[i], threshold]);
  const label = `Win rate by checkpoint: ${checkpoints.map((one, i) => `${one.id}: ${number(own[i].mean, 3)}${live[i] === null ? "" : `, compared ${number(live[i], 3)}`}`).join("; ")}`;
  const table = { columns: ["checkpoint", "held out", "compared", `best-of-${n}`, "required"], rows: dashed(rows) };
  return [traces, layout("win rate"), { label, table }];
}

/** A figure of the checkpoints beside that of best-of-N, all on held-out prompts. */
function heldOut({ checkpoints, n }, field, name, axis, unit) {
  const ids = checkpoints.map((one) => one.id);
  const own = checkpoints.map((one) => one.decision.figures.candidate[field]);
  const best = checkpoints.map((one) => one.decision.figures.bon[field].mean);
  const traces = () => [line(ids, best, `best-of-${n}`, BEST_OF_N, "dot"), points(ids, own, "checkpoint", HELD_OUT)];
  const label = `${name} by checkpoint: ${checkpoints.map((one, i) => `${one.id}: ${number(own[i].mean, 2)}${unit}`).join("; ")}`;
  const rows = checkpoints.map((one, i) => [one.id, own[i].mean, best[i]]);
  return [traces, layout(axis), { label, table: { columns: ["checkpoint", axis, `best-of-${n}`], rows } }];
}

function layout(name) {
  return { height: 320, autosize: true, xaxis: { type: "category", title: { text: "checkpoint" } }, yaxis: { title: { text: name } } };
}

function line(x, y, name, series, dash) {
  return { x, y, mode: x.length > 1 ? "lines" : "lines+markers", name, line: { color: colour(series), width: 1.5, dash }, marker: { color: colour(series), size: 6 } };
}

function points(x, found, name, series) {
  return {
    x, y: found.map((one) => one.mean), mode: "lines+markers", name: plain(name), cliponaxis: false,
    line: { color: colour(series), width: 1 }, marker: { color: colour(series), size: 9 },
    error_y: { type: "data", color: colour(series), thickness: 1.5, array: found.map((one) => one.high - one.mean), arrayminus: found.map((one) => one.mean - one.low) },
  };
}

function dashed(rows) {
  return rows.map((row) => row.map((value) => value ?? "–"));
}
