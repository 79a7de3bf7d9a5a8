// The budget of a request of mode auto: its kind and amount, or why there can be none.

import { comparison } from "../../comparison.js";
import { el, field, freshId, replace } from "../../dom.js";

const KINDS = {
  tokens: { name: "tokens", amount: "Tokens at most", limits: { min: "1", step: "1" } },
  money: { name: "money", amount: "Money at most", limits: { min: "0.000000001", step: "any" } },
  reward: { name: "reward", amount: "Reward at least", limits: { min: "", step: "any" } },
};

export class Budget {
  #kind;
  #amount = el("input", { type: "number", inputmode: "decimal" });
  #label;
  #amountField;
  #hint = el("p", { class: "muted small", id: freshId("budget-hint") });
  #options;

  /** `onChoose`: called when somebody chooses a kind. */
  constructor({ onChoose }) {
    this.#options = Object.fromEntries(Object.entries(KINDS).map(([kind, { name }]) => [kind, el("option", { value: kind }, name)]));
    this.#kind = el(
      "select", { "aria-describedby": this.#hint.id, on: { change: () => { this.#show(); if (this.#kind.value) onChoose(); } } },
      el("option", { value: "" }, "none"), Object.values(this.#options),
    );
    this.#amountField = field("Tokens at most", this.#amount, { hidden: true });
    this.#label = this.#amountField.querySelector("label");
    this.fields = [field("Budget", this.#kind), this.#amountField];
    this.hint = this.#hint;
  }

  /** `kinds`: those that the server takes, as its /modes say. */
  offer(kinds) {
    this.#kind.disabled = kinds.length === 0;
    if (!kinds.includes(this.#kind.value)) this.#kind.value = "";
    for (const [kind, option] of Object.entries(this.#options)) option.disabled = !kinds.includes(kind);
    const setting = (name) => el("code", {}, name);
    if (kinds.length === 0) {
      replace(
        this.#hint, "A budget needs measured settings, from which mode auto chooses, and this server has none. ",
        el("a", { href: comparison.link("tune") }, "Tune"), " says how to measure and apply them; ", setting("--auto.table FILE"), " gives it a table at its start.",
      );
    } else {
      replace(
        this.#hint, "Within a budget of tokens or money an answer, mode auto takes the best measured setting; for a reward, the cheapest that has it.",
        !kinds.includes("money") && [" In money, the server needs ", setting("--auto.price-per-hour"), "."],
      );
    }
    this.#show();
  }

  /** The field of the request; null without a budget. */
  get value() {
    const kind = this.#kind.value;
    return kind && Number.isFinite(this.#amount.valueAsNumber) ? { [kind]: this.#amount.valueAsNumber } : null;
  }

  /** What is wrong with it, in a sentence; empty if nothing is. `chosen`: the modes that are to answer. */
  trouble(chosen) {
    if (!this.#kind.value) return "";
    if (!chosen.includes("auto")) return "A budget is for mode auto: choose auto among the ways to answer, or no budget.";
    if (this.value !== null) return "";
    this.#amount.focus();
    return "Give the budget an amount, or choose none.";
  }

  #show() {
    const kind = KINDS[this.#kind.value];
    this.#amountField.hidden = !kind;
    this.#amount.disabled = !kind; // so that it is not checked while it is away
    if (!kind) return;
    this.#label.textContent = kind.amount;
    this.#amount.min = kind.limits.min;
    this.#amount.step = kind.limits.step;
  }
}
