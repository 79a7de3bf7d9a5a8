// Play: one prompt through several ways to answer it, live and side by side.

import { el, number, replace } from "../dom.js";
import { Column } from "./play/column.js";
import { Draws } from "./play/draws.js";
import { Form } from "./play/form.js";

export const title = "Play";

// A browser opens six connections to a server; one is left for everything else.
const AT_ONCE = 5;

let view = null;

/** The view is made once, so answers go on coming while another view is looked at. */
export function mount(root, context) {
  view ??= new Play(context);
  root.append(...view.parts);
  view.shown();
}

export function unmount() {
  view.left();
}

class Play {
  #context;
  #form;
  #results;
  #columns = [];
  #active = 0;
  #summarise = () => {};
  #stopping = null;
  #onKey = (event) => this.#key(event);

  constructor(context) {
    this.#context = context;
    this.#form = new Form({ onAsk: (wanted) => this.#ask(wanted), onStop: () => this.#stop() });
    this.#results = el("section", { class: "stack", "aria-label": "Answers" });
    this.parts = [
      el("h1", { class: "unseen" }, title),
      this.#form.node,
      this.#results,
    ];
    replace(this.#results, nothingYet());
    context.server.addEventListener("change", () => this.#serverChanged());
    this.#serverChanged();
  }

  shown() {
    document.addEventListener("keydown", this.#onKey);
  }

  left() {
    document.removeEventListener("keydown", this.#onKey);
  }

  #serverChanged() {
    const { answers, modes } = this.#context.server;
    this.#form.setReady(answers);
    if (!answers) return;
    this.#form.offer(modes);
  }

  #key(event) {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.#form.submit();
    } else if (event.key === "Escape" && this.#stopping) {
      this.#stop();
    }
  }

  async #ask({ body, budget, modes, oneAtATime }) {
    this.#stop();
    this.#stopping = new AbortController();
    const { signal } = this.#stopping;
    this.#context.announce(`asking ${modes.map((mode) => mode.name).join(", ")}`);
    const range = new Range(this.#results);
    const { announce } = this.#context;
    const again = (column) => this.#again(column);
    this.#columns = modes.map((mode) => new Column({ mode, body: mode.name === "auto" && budget ? { ...body, budget } : body, range, announce, again }));
    const nodes = this.#columns.map((column) => column.node);
    const summary = el("p", { class: "summary", hidden: true });
    this.#summarise = () => sum(summary, this.#columns);
    const draws = new Draws({ body, modes, most: this.#context.server.modes.limits.max_n });
    replace(this.#results, summary, el("div", { class: "grid columns" }, nodes), range.node, draws.node);
    const run = inTurns(this.#columns, oneAtATime ? 1 : AT_ONCE, (column) => column.run(signal));
    await this.#running(run, signal);
  }

  /** One column once more; Stop stops it with whatever else still runs. */
  async #again(column) {
    this.#stopping ??= new AbortController();
    const { signal } = this.#stopping;
    await this.#running(column.run(signal), signal);
  }

  async #running(work, signal) {
    this.#active += 1;
    this.#form.setRunning(true);
    await work;
    this.#active -= 1;
    this.#summarise();
    if (this.#active === 0 && this.#stopping?.signal === signal) this.#stop();
  }

  #stop() {
    this.#stopping?.abort();
    this.#stopping = null;
    this.#form.setRunning(false);
  }
}

/** Runs `work` on every item, so many at once, in order. */
async function inTurns(items, atOnce, work) {
  const waiting = [...items];
  const worker = async () => {
    while (waiting.length) await work(waiting.shift());
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
}

/** Lowest and highest reward of all answers, so that bars of all columns have one scale. */
class Range {
  #low = Infinity;
  #high = -Infinity;
  #place;

  constructor(place) {
    this.#place = place;
    this.node = el("p", { class: "muted small", hidden: true });
  }

  include(reward) {
    if (reward === null || (reward >= this.#low && reward <= this.#high)) return;
    this.#low = Math.min(this.#low, reward);
    this.#high = Math.max(this.#high, reward);
    this.#place.style.setProperty("--low", this.#low);
    this.#place.style.setProperty("--span", Math.max(this.#high - this.#low, 1e-9));
    this.node.hidden = this.#low === this.#high;
    this.node.textContent =
      `Bars run from reward ${number(this.#low, 2)} to ${number(this.#high, 2)} in every column. ` +
      "Modes asked at once share the machine, so their times are not a comparison: that is what Runs is for.";
  }
}

/** The best answer against the cheapest, in one sentence; nothing where they are the same. */
function sum(place, columns) {
  const answers = columns.map((column) => column.answer).filter((answer) => answer && answer.reward !== null);
  const best = least(answers, (answer) => -answer.reward);
  const cheapest = least(answers, (answer) => answer.usage.generated_tokens);
  place.hidden = answers.length < 2 || best === cheapest;
  if (place.hidden) return;
  const [more, fewer] = [best, cheapest].map((answer) => answer.usage.generated_tokens);
  place.textContent =
    `On this prompt ${best.mode} has the highest reward, ${number(best.reward, 2)}, for ${number(more)} tokens: ` +
    `${number(more / Math.max(fewer, 1), 1)} times the ${number(fewer)} of ${cheapest.mode}, which has ${number(cheapest.reward, 2)}.`;
}

function least(items, of) {
  return items.reduce((found, item) => (found === null || of(item) < of(found) ? item : found), null);
}

function nothingYet() {
  return el(
    "div",
    { class: "empty" },
    el("p", {}, "Answers appear here side by side, while they are made."),
    el(
      "p",
      { class: "small" },
      el("kbd", {}, "Ctrl"), " ", el("kbd", {}, "Enter"), " asks, ", el("kbd", {}, "Esc"), " stops.",
    ),
  );
}
