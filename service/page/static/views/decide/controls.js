// What is compared, and at which volume, price, training time and latency limit.

import { el, freshId, number, replace, significant } from "../../dom.js";
import { modeOf } from "../../styles.js";
import { DEFAULT_VOLUME } from "../../verdict.js";

const STEPS = 1000;

export class Controls {
  #comparison;
  #sliders = {};
  #choices = el("div", { class: "row" });
  #reset;

  constructor(comparison) {
    this.#comparison = comparison;
    this.#sliders = {
      volume: new Slider("Answers to serve", "", (value) => comparison.set({ volume: value })),
      price: new Slider("Price of the machine an hour", "", (value) => comparison.set({ price: value })),
      hours: new Slider("Device hours of training", "h", (value) => comparison.set({ hours: value }), { zero: true }),
      p95: new Slider("Latency limit, p95", "ms", (value) => comparison.set({ p95: value }), { none: "no limit", zero: true }),
    };
    this.#reset = el(
      "button",
      {
        type: "button", class: "button quiet slim",
        on: { click: () => comparison.set({ volume: null, price: null, hours: null, p95: null }) },
      },
      "As measured",
    );
    this.node = el(
      "section", { class: "card stack decide-controls", "aria-label": "What if" },
      el("div", { class: "row apart" }, el("h2", {}, "What if"), this.#reset),
      this.#choices,
      el("div", { class: "sliders" }, Object.values(this.#sliders).map((slider) => slider.node)),
    );
  }

  show(found, verdict) {
    const values = this.#comparison.values;
    const { pair } = verdict;
    this.#reset.hidden = [values.volume, values.price, values.hours, values.p95].every((value) => value === null);
    const sides = new Map(found.sides.map((side) => [side.variant, side]));
    const tuned = [...new Set(found.pairs.map((one) => one.tuned))];
    const sampled = [...new Set(found.pairs.filter((one) => one.tuned === pair.tuned).map((one) => one.sampled))];
    const judges = ["reward", "gold"].filter((judge) => found.pairs.some((one) => one.given_up[judge]));
    replace(
      this.#choices,
      select("Fine-tune", tuned, pair.tuned, (name) => this.#comparison.set({ tuned: modeOf(name) })),
      select("Instead of", sampled, pair.sampled, (name) => this.#comparison.set({ mode: sides.get(name).mode, n: sides.get(name).n })),
      judges.length > 1 && select("Judged by", judges, verdict.judge, (judge) => this.#comparison.set({ judge }), { reward: "the serving reward model", gold: "the gold reward model" }),
    );
    const pays = verdict.paysAfter.point ?? DEFAULT_VOLUME;
    this.#sliders.volume.show(values.volume ?? DEFAULT_VOLUME, Math.max(1, Math.min(100, pays / 100)), Math.max(1e9, pays * 1000));
    this.#sliders.price.unit = found.currency;
    this.#sliders.price.show(verdict.price, Math.min(0.01, found.price_per_hour / 10), Math.max(100, found.price_per_hour * 10));
    const hours = verdict.hours;
    this.#sliders.hours.show(hours, Math.min(0.001, (hours ?? 1) / 10), Math.max(1000, (hours ?? 1) * 10));
    const seen = found.sides.flatMap((side) => side.levels.map((level) => level.p95_ms)).filter((ms) => ms !== null);
    if (seen.length) this.#sliders.p95.show(values.p95, Math.min(...seen) / 2, Math.max(...seen) * 2);
    this.#sliders.p95.node.hidden = seen.length === 0;
  }
}

function select(label, names, chosen, onChoose, words = {}) {
  const id = freshId("choice");
  const input = el(
    "select", { id, value: chosen, on: { change: (event) => onChoose(event.target.value) } },
    names.map((name) => el("option", { value: name }, words[name] ?? name)),
  );
  return el("div", { class: "field" }, el("label", { for: id }, label), input);
}

/** A slider on a logarithmic scale, with a field for an exact value; with `none`, its right end means no value; `zero` allows 0. */
class Slider {
  #name;
  #onInput;
  #none;
  #zero;
  #low = 1;
  #high = 10;
  #range;
  #exact;
  #shown;

  constructor(name, unit, onInput, { none = null, zero = false } = {}) {
    this.#name = name;
    this.unit = unit;
    this.#onInput = onInput;
    this.#none = none;
    this.#zero = zero;
    const id = freshId("slider");
    this.#range = el("input", { type: "range", id, min: 0, max: STEPS, step: 1, on: { input: () => this.#moved() } });
    this.#exact = el("input", {
      type: "number", inputmode: "decimal", min: 0, step: "any", "aria-label": `${name}, exactly`,
      on: { change: () => this.#typed() },
    });
    this.#shown = el("span", { class: "muted small" });
    this.node = el(
      "div", { class: "slider" },
      el("div", { class: "row apart" }, el("label", { for: id }, name), this.#shown),
      el("div", { class: "row nowrap" }, this.#range, this.#exact),
    );
  }

  show(value, low, high) {
    [this.#low, this.#high] = [low, high];
    const share = value === null ? 1 : Math.log(Math.max(value, low) / low) / Math.log(high / low);
    const unknown = value === null && this.#none === null;
    if (document.activeElement !== this.#range) this.#range.value = String(unknown ? 0 : Math.round(STEPS * Math.min(1, share)));
    if (document.activeElement !== this.#exact) this.#exact.value = value === null ? "" : String(Number(value.toPrecision(4)));
    const words = value === null ? (this.#none ?? "unknown") : `${significant(value, 3)} ${this.unit}`.trim();
    this.#shown.textContent = words;
    this.#range.setAttribute("aria-valuetext", words);
  }

  #moved() {
    const share = Number(this.#range.value) / STEPS;
    if (this.#none !== null && share === 1) this.#onInput(null);
    else this.#onInput(Number((this.#low * (this.#high / this.#low) ** share).toPrecision(3)));
  }

  #typed() {
    const value = this.#exact.valueAsNumber;
    if (this.#exact.value === "") this.#onInput(null);
    else if (Number.isFinite(value) && (this.#zero ? value >= 0 : value > 0)) this.#onInput(value);
    else this.#shown.textContent = `${this.#name} is a number ${this.#zero ? "of at least" : "above"} ${number(0)}.`;
  }
}
