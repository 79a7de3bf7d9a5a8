// Decide: whether the fine-tune pays, from the newest load test, at any volume, price and latency limit.

import { ApiError, get, post } from "../api.js";
import { comparison } from "../comparison.js";
import { decision } from "../decision.js";
import { duration, el, replace } from "../dom.js";
import { verdictOf } from "../verdict.js";
import { trouble } from "./play/trouble.js";
import { Controls } from "./decide/controls.js";
import { costChart } from "./decide/cost_chart.js";
import { statement } from "./decide/statement.js";
import { tiles } from "./decide/tiles.js";

export const title = "Decide";

const USUAL_S = 330; // a calibrated run of five rounds with its scoring, where the server allows it
let view = null;

/** Made once; what it shows is computed anew when the comparison or the figures change. */
export function mount(root, context) {
  view ??= new Decide(context);
  root.append(...view.parts);
  view.shown();
}

export function unmount() {
  view.left();
}

class Decide {
  #context;
  #here = false;
  #limits = null;
  #drawn = 0; // width of the chart
  #body = el("div", { class: "stack" }, el("div", { class: "empty" }, el("p", {}, "Waiting for the server.")));
  #verdict = el("section", { class: "card stack tight decide-verdict", "aria-label": "Verdict" });
  #controls = new Controls(comparison);
  #chart = el("div", {});
  #chartCard = el("section", { class: "card stack tight", "aria-label": "Cost" }, el("h2", {}, "What so many answers cost"), this.#chart);
  #tiles = el("div", {});
  #notes = el("div", { class: "stack" });
  #trouble = el("div", {});

  constructor(context) {
    this.#context = context;
    this.parts = [el("h1", { class: "unseen" }, title), this.#body];
    decision.addEventListener("change", () => this.#draw());
    comparison.addEventListener("change", () => this.#draw());
    context.server.addEventListener("change", () => this.#limit());
    new ResizeObserver(() => this.#drawCosts()).observe(this.#chart);
  }

  shown() {
    this.#here = true;
    this.#limit();
    this.#draw();
    if (decision.found !== null) decision.refresh(); // a load test may have ended while nobody looked
  }

  left() {
    this.#here = false;
  }

  /** What the server allows a load test, for the button that measures. */
  async #limit() {
    if (!this.#here || this.#limits !== null || this.#context.server.state !== "ready") return;
    try {
      this.#limits = await get("/loadtests");
      this.#draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
  }

  #draw() {
    if (!this.#here) return;
    const { found, error } = decision;
    if (found === null) {
      if (error) replace(this.#body, trouble(error, { retry: () => decision.refresh() }));
      return;
    }
    const verdict = verdictOf(found, comparison.values);
    if (verdict === null) {
      replace(this.#body, this.#unmeasured(found), this.#trouble);
      return;
    }
    this.#say(found, verdict);
    this.#controls.show(found, verdict);
    replace(this.#tiles, tiles(verdict, { asks: true }));
    this.#note(found, verdict);
    const parts = [this.#verdict, this.#trouble, this.#controls.node, this.#chartCard, this.#tiles, this.#notes];
    if (this.#body.firstChild !== this.#verdict) replace(this.#body, parts);
    this.#drawn = this.#chart.clientWidth; // before: what is drawn may widen its place
    costChart(this.#chart, verdict);
  }

  /** The chart anew where its place has another width than it was drawn for. */
  #drawCosts() {
    if (this.#here && decision.found?.pairs.length && this.#chart.clientWidth !== this.#drawn) this.#draw();
  }

  #say(found, verdict) {
    replace(
      this.#verdict,
      statement(found, verdict),
      verdict.hours === null && el("p", { class: "notice small" }, `The cost of training is unknown: ${verdict.pair.training_source}. Set it below.`),
      verdict.pair.state !== "decided" && this.#mend(verdict.pair.reasons, verdict),
    );
  }

  /** What a load test lacks, and the button that measures it. */
  #mend(reasons, verdict) {
    return el(
      "div", { class: "notice stack tight" },
      el("p", {}, "What is missing for a decision:"),
      el("ul", { class: "notes" }, reasons.map((reason) => el("li", {}, sentence(reason)))),
      el("div", { class: "row" }, this.#measureButton(verdict)),
    );
  }

  #measureButton(verdict) {
    const most = this.#limits?.max_s ?? USUAL_S;
    if (most === 0) return el("p", { class: "small" }, "This server takes no load tests (limits.loadtest_max_s is 0). Run ", el("code", {}, "vbon loadtest run"), " against it.");
    const time = duration(1000 * Math.min(USUAL_S, most + 30));
    return el(
      "button",
      { type: "button", class: "button primary", disabled: this.#limits === null, on: { click: () => this.#measure(verdict) } },
      `Measure properly, about ${time}`,
    );
  }

  async #measure(verdict) {
    const names = (this.#context.server.modes?.modes ?? []).map((mode) => mode.name);
    const body = { rounds: 5, quality_prompts: 64 };
    if (verdict !== null) {
      const modes = ["ref", verdict.sampled.side.mode, verdict.tuned.side.mode];
      body.modes = [...new Set(modes)].filter((name) => names.includes(name.split("@")[0]));
      if (verdict.sampled.side.n > 1) body.n = [verdict.sampled.side.n];
      body.price_per_hour = verdict.price;
      if (verdict.hours !== null && comparison.values.hours !== null) body.training_hours = verdict.hours;
    }
    try {
      await post("/loadtests", body);
      location.hash = comparison.link("runs");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(this.#trouble, trouble(error, { retry: () => this.#measure(verdict) }));
    }
  }

  #note(found, verdict) {
    const when = new Date(found.measured);
    const models = [verdict.tuned.side, verdict.sampled.side].map((side) => side.variant).join(" against ");
    replace(
      this.#notes,
      found.warnings.length > 0 && verdict.pair.state === "decided" && el(
        "details", { class: "card" }, el("summary", {}, `What may mislead (${found.warnings.length})`),
        el("ul", { class: "notes" }, found.warnings.map((text) => el("li", {}, text))),
        el("div", { class: "row" }, this.#measureButton(verdict)),
      ),
      el(
        "p", { class: "muted small" },
        `${models}, measured `, el("time", { datetime: found.measured }, when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })),
        found.machine && ` on ${found.machine}`, `, load test ${found.run}. Training: ${verdict.pair.training_source}. `,
        el("a", { href: "#runs" }, "Past load tests"),
      ),
    );
  }

  #unmeasured(found) {
    return el(
      "section", { class: "card stack decide-verdict", "aria-label": "Verdict" },
      el("div", { class: "row" }, el("span", { class: "badge bad" }, "Not measured")),
      el("p", { class: "headline" }, "Should you pay N times at inference, or fine-tune once? Nobody has measured it here yet."),
      el("ul", { class: "notes" }, found.missing.map((text) => el("li", {}, text))),
      el("div", { class: "row" }, this.#measureButton(null), el("a", { href: "#play" }, "Try the modes first")),
    );
  }
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}
