// The candidates of one answer, shown on demand: a row each, with its reward as a bar.

import { counted, el, number, replace } from "../../dom.js";
import { onDemand } from "./on_demand.js";

export class Candidates {
  #rows = new Map(); // index -> {candidate, node}
  #list;
  #count = el("span", {});
  #sorted = true;
  #best = null;

  constructor(name) {
    this.#list = el("ol", { class: "candidates", tabindex: 0, "aria-label": `candidates of ${name}` });
    this.node = onDemand(`${name}: candidates`, this.#count, this.#tools(), this.#list);
  }

  /** A candidate that has its reward, or has none; one seen before is brought up to date. */
  add(candidate) {
    this.#rows.get(candidate.index)?.node.remove();
    const made = { candidate, node: row(candidate) };
    this.#rows.set(candidate.index, made);
    this.#place(made);
    this.#count.textContent = counted(this.#rows.size, "candidate");
  }

  /** The one with the highest reward so far. */
  markBest(index) {
    if (this.#best === index) return;
    this.#rows.get(this.#best)?.node.removeAttribute("data-mark");
    this.#best = index;
    this.#mark(index, "best", "best");
  }

  textOf(index) {
    return this.#rows.get(index)?.candidate.text ?? "";
  }

  /** All of them at the end, those too that were never scored, and which one was chosen. */
  finish(candidates, chosen) {
    for (const candidate of candidates) if (!this.#rows.has(candidate.index)) this.add(candidate);
    this.#rows.get(this.#best)?.node.removeAttribute("data-mark");
    this.#mark(chosen, "winner", "chosen");
    this.#rows.get(chosen)?.node.setAttribute("aria-current", "true");
    this.#arrange();
    this.#list.scrollTop = 0;
  }

  #mark(index, mark, words) {
    const node = this.#rows.get(index)?.node;
    if (!node) return;
    node.dataset.mark = mark;
    node.querySelector(".mark-words").textContent = words;
  }

  #place(made) {
    const after = this.#ordered().find((other) => other !== made && this.#before(made, other) < 0);
    this.#list.insertBefore(made.node, after?.node ?? null);
  }

  #arrange() {
    this.#list.append(...this.#ordered().map(({ node }) => node));
  }

  #ordered() {
    return [...this.#rows.values()].sort((one, other) => this.#before(one, other));
  }

  #before({ candidate: one }, { candidate: other }) {
    if (!this.#sorted) return one.index - other.index;
    return (other.reward ?? -Infinity) - (one.reward ?? -Infinity) || one.index - other.index;
  }

  #tools() {
    const sorting = el("select", { "aria-label": "Order of candidates" }, el("option", { value: "reward" }, "best first"), el("option", { value: "index" }, "as drawn"));
    sorting.addEventListener("change", () => {
      this.#sorted = sorting.value === "reward";
      this.#arrange();
    });
    const whole = el("input", { type: "checkbox" });
    whole.addEventListener("change", () => this.#list.classList.toggle("whole", whole.checked));
    return el("div", { class: "row apart small drawn-tools" }, el("label", { class: "check" }, whole, "whole texts"), sorting);
  }
}

function row(candidate) {
  const { index, text, reward, finish_reason: reason, num_tokens: tokens } = candidate;
  const node = el(
    "li", { class: "candidate", data: { index: String(index) }, title: `${number(tokens)} tokens, ended by ${reason}` },
    el(
      "div", { class: "candidate-head" },
      el("span", { class: "muted" }, `#${index + 1}`),
      el("span", { class: "bar", "aria-hidden": "true" }, reward !== null && el("span", { vars: { "--reward": String(reward) } })),
      el("span", { class: "reward" }, number(reward, 2)),
      el("span", { class: "mark-words" }),
    ),
    el("p", { class: "candidate-text" }),
  );
  const shown = node.querySelector(".candidate-text");
  replace(shown, text === "" ? el("em", { class: "muted" }, "empty") : text);
  if (reason === "rejected") node.dataset.rejected = "yes";
  return node;
}
