// What is going on while a load test runs: throughput and latency of the block, the server's queue and its engines.

import { counted, duration, el, number, replace, significant, svg } from "../../dom.js";
import { path } from "../../xy_chart.js";

const SHOWN = 60; // looks, one a second
const [WIDTH, HEIGHT] = [240, 40];

export class Live {
  node = el("div", { class: "live stack tight", hidden: true });
  #run = null;
  #rates = [];

  show({ id, block, server }) {
    if (id !== this.#run) [this.#run, this.#rates] = [id, []];
    this.node.hidden = !server;
    if (!server) return;
    this.#rates = [...this.#rates, block?.answers_per_s ?? 0].slice(-SHOWN);
    const stat = (name, value, title) => el("div", { title }, el("dt", {}, name), el("dd", {}, value));
    replace(
      this.node,
      line(this.#rates),
      el(
        "dl", { class: "stats" },
        stat("Answers a second", block ? significant(block.answers_per_s) : "–", "over the last 5 seconds of the block"),
        stat("p95", block ? duration(block.p95_ms) : "–", "E2E, over the last 5 seconds of the block"),
        stat("Failed", block ? number(block.failed) : "–", "requests of this block"),
        stat("In the engines", number(server.running), "candidates"),
        stat("Waiting", number(server.waiting), "candidates that wait for admission"),
        stat("For scores", number(server.scores_waiting), "candidates that wait for their reward"),
      ),
      el("p", { class: "row small" }, server.engines.map(engine)),
    );
  }
}

function engine({ policy, alive, sequences, restarts }) {
  const words = alive ? counted(sequences, "sequence") : "is dead, and will be restarted";
  const since = restarts ? `, restarted ${number(restarts)} ${restarts === 1 ? "time" : "times"}` : "";
  return el("span", { class: `badge ${alive ? "good" : "bad"}` }, `engine ${policy}: ${words}${since}`);
}

/** Answers a second at every look, from 0 to the highest. */
function line(rates) {
  const most = Math.max(...rates, 1e-9);
  const points = rates.map((rate, i) => [i * (WIDTH / (SHOWN - 1)), HEIGHT - 2 - (rate / most) * (HEIGHT - 4)]);
  const label = `Answers a second during the last ${counted(rates.length, "look")}: now ${significant(rates.at(-1))}, at most ${significant(most)}`;
  return svg("svg", { class: "live-line", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label }, svg("path", { d: path(points) }));
}
