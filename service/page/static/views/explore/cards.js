// The same in words and figures: a card a policy, and one table of everything.

import { duration, el, number, significant, sortable } from "../../dom.js";
import { named } from "./plots.js";

const SETTINGS = { num_samples: "N", beta: "Beta", temperature: "Temperature", lora_rank: "LoRA rank", learning_rate: "Learning rate" };

/** One card a served policy. */
export function cards(policies) {
  return el("div", { class: "grid policy-cards" }, policies.map(card));
}

function card(one) {
  const { training } = one;
  const cost = training?.cost;
  const facts = [
    ["What it is", training?.description],
    ["Objective", training?.objective],
    ...Object.entries(SETTINGS).map(([key, name]) => [name, training?.settings[key]]),
    ["Steps", cost && count(cost.steps)],
    ["Training", cost && duration(cost.training_seconds * cost.processes * 1000)],
    ["Samples drawn", cost && count(cost.samples_drawn)],
    ["Trained", training?.created?.slice(0, 10)],
    ["Revision", one.policy.revision],
    ["Weights", one.policy.path],
    ["Figures from", one.source],
  ].filter(([, value]) => value !== null && value !== undefined);
  return el(
    "section", { class: "card stack tight policy-card", "aria-label": `Policy ${one.name}` },
    el("h2", {}, one.name),
    el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    one.notes.map((note) => el("p", { class: "notice small" }, marked(note))),
  );
}

const count = (value) => (value === null ? null : number(value));

/** Every figure there is; a dash is what nobody measured. `sides`: what load tests know of tokens, by variant. */
export function table({ policies, best_of_n: curve, live }, sides = []) {
  const rows = [
    ...policies.map((one) => [one.name, one.source ?? "not measured", one]),
    ...curve.map((one) => [`best-of-${one.n}`, "evaluation", one]),
    ...live.map((one) => [named(one), "load test", { ...one, ...spent(one, sides) }]),
  ];
  const head = ["method", "from", "KL, nats", "win rate", "reward", "gold win rate", "gold reward", "tokens an answer", "reward gained per 1,000 tokens"];
  const body = rows.map(([name, from, one]) => {
    const cells = [
      [distance(one.kl_nats), one.kl_nats?.mean], [interval(one.win_rate, 3), one.win_rate?.mean],
      [interval(one.reward), one.reward?.mean], [interval(one.gold_win_rate, 3), one.gold_win_rate?.mean],
      [interval(one.gold), one.gold?.mean], [one.tokens ? significant(one.tokens) : "–", one.tokens],
      [one.gained === undefined ? "–" : number(one.gained, 2), one.gained],
    ];
    return el(
      "tr", {}, el("th", { scope: "row", data: { value: name } }, name), el("td", { data: { value: from } }, from),
      cells.map(([shown, value]) => el("td", { class: "num", data: { value: value ?? "" } }, shown)),
    );
  });
  const name = "All figures, with 95% intervals over prompts";
  const made = el(
    "table", { class: "table figures explore-figures" },
    el("caption", {}, `${name}; a dash is what nobody measured. The reward gained is that above one sample of the reference.`),
    el("thead", {}, el("tr", {}, head.map((text, i) => el("th", { scope: "col", class: i > 1 ? "num" : null }, text)))),
    el("tbody", {}, body),
  );
  return el(
    "section", { class: "card stack tight", "aria-label": "Figures" }, el("h2", {}, "Figures"),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, sortable(made)),
  );
}

/** Tokens an answer and the reward gained for them, where a load test measured both this and the reference. */
function spent(one, sides) {
  const side = sides.find((other) => other.mode === one.mode && other.n === one.n);
  const reference = sides.find((other) => other.mode === "ref");
  const tokens = side?.tokens_per_answer ?? null;
  if (!tokens) return {};
  const [own, base] = [side.rewards.reward, reference?.rewards.reward];
  return own && base && side !== reference ? { tokens, gained: (1000 * (own.mean - base.mean)) / tokens } : { tokens };
}

function distance(kl) {
  if (!kl) return "–";
  if (kl.kind === "upper bound") return `≤ ${number(kl.mean, 3)}`;
  return interval(kl, 3);
}

function interval(found, digits = 2) {
  if (!found) return "–";
  const { mean, low, high } = found;
  if (found.count === 0 || low === high) return number(mean, digits);
  return [number(mean, digits), " ", el("span", { class: "muted small" }, `${number(low, digits)} to ${number(high, digits)}`)];
}

/** Text in which backquotes mark what to type. */
export function marked(text) {
  return text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));
}
