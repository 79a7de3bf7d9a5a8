// Sixteen answers of each, fewer where the server takes fewer: their rewards on one axis with the best of the reference's.

import { ApiError, post } from "../../api.js";
import { el, number, replace, svg } from "../../dom.js";
import { styleOf } from "../../styles.js";
import { trouble } from "./trouble.js";

const DRAWS = 16;
const AT_ONCE = 4;
const [WIDTH, ROW, LEFT, RIGHT] = [640, 44, 8, 8];

export class Draws {
  #body;
  #modes;
  #count;
  #shown = el("div", { class: "stack tight" });
  #button;

  /**
   * `modes`: those that were asked; the rewards of one sample are drawn for those that draw one.
   * `most`: the number of candidates that the server takes.
   */
  constructor({ body, modes, most }) {
    this.#count = Math.min(DRAWS, most);
    this.#button = el("button", { type: "button", class: "button", on: { click: () => this.#draw() } }, `Draw ${this.#count} of each`);
    const { stream, return_candidates: all, ...rest } = body;
    this.#body = rest;
    this.#modes = modes;
    this.node = el(
      "section", { class: "card stack tight draws", "aria-label": `${this.#count} of each` },
      el("div", { class: "row apart" }, el("p", { class: "muted small" }, `One answer says little: compare ${this.#count} of each on this prompt.`), this.#button),
      this.#shown,
    );
    this.node.hidden = this.#singles().length === 0;
  }

  #singles() {
    return this.#modes.filter((mode) => !mode.reranks && mode.name !== "auto");
  }

  async #draw() {
    this.#button.disabled = true;
    replace(this.#shown, el("p", { class: "muted", role: "status" }, "Drawing…"));
    try {
      const bon = this.#modes.find((mode) => mode.name === "bon");
      const rows = [];
      if (bon) rows.push(...(await this.#bestOf()));
      for (const mode of this.#singles()) if (!(bon && mode.name === "ref")) rows.push(await this.#samples(mode));
      replace(this.#shown, picture(rows), el("ul", { class: "small" }, rows.map((row) => el("li", {}, words(row)))));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(this.#shown, trouble(error, { retry: () => this.#draw() }));
    } finally {
      this.#button.disabled = false;
    }
  }

  /** The reference's samples and the best of them, from one request. */
  async #bestOf() {
    const answer = await post("/generate?mode=bon", { ...this.#body, n: this.#count, return_candidates: true });
    const rewards = answer.candidates.map((one) => one.reward).filter((reward) => reward !== null);
    return [{ name: "ref", of: `${this.#count} samples`, rewards }, { name: "bon", of: `best of ${this.#count}`, rewards: [answer.reward].filter((reward) => reward !== null) }];
  }

  /** So many answers of a mode, each with a seed of its own. */
  async #samples(mode) {
    const { n, seed, ...body } = this.#body;
    const rewards = [];
    const left = Array.from({ length: this.#count }, (_, i) => i);
    const worker = async () => {
      while (left.length) {
        const i = left.shift();
        const answer = await post(`/generate?mode=${encodeURIComponent(mode.name)}`, { ...body, ...(seed === undefined ? {} : { seed: seed + i }), score: true });
        if (answer.reward !== null) rewards.push(answer.reward);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    return { name: mode.name, of: `${this.#count} samples`, rewards };
  }
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function words({ name, of, rewards }) {
  if (rewards.length === 0) return `${name}, ${of}: none could be scored`;
  if (rewards.length === 1) return `${name}, ${of}: reward ${number(rewards[0], 2)}`;
  return `${name}, ${of}: mean reward ${number(mean(rewards), 2)}, from ${number(Math.min(...rewards), 2)} to ${number(Math.max(...rewards), 2)}`;
}

/** A row of dots for each, a line at its mean, all on one axis. */
function picture(rows) {
  const all = rows.flatMap((row) => row.rewards);
  if (all.length === 0) return el("p", { class: "muted" }, "No answer could be scored.");
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (reward) => LEFT + 6 + ((reward - low) / (high - low || 1)) * (WIDTH - LEFT - RIGHT - 12);
  const height = rows.length * ROW + 20;
  return svg(
    "svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "draws-chart", role: "img", "aria-label": `Rewards on one axis from ${number(low, 2)} to ${number(high, 2)}. ${rows.map(words).join(". ")}` },
    rows.map((row, i) => {
      const y = i * ROW + 30;
      return svg(
        "g", { vars: { "--own": `var(${styleOf(row.name).series})` } },
        svg("text", { x: LEFT, y: y - 14 }, `${row.name}, ${row.of}`),
        svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }),
        row.rewards.map((reward) => svg("circle", { cx: x(reward), cy: y, r: row.rewards.length === 1 ? 7 : 5 })),
        row.rewards.length > 1 && svg("line", { class: "mean", x1: x(mean(row.rewards)), x2: x(mean(row.rewards)), y1: y - 10, y2: y + 10 }),
      );
    }),
    svg("text", { x: LEFT, y: height - 2 }, number(low, 2)),
    svg("text", { x: WIDTH - RIGHT, y: height - 2, "text-anchor": "end" }, number(high, 2)),
  );
}
