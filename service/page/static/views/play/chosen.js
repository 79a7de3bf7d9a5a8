// What mode auto chose for a prompt, why, and what it cost.

import { el, number, significant } from "../../dom.js";

/** Nothing where the answer is of another mode, or of a rollout's arm. */
export function chosen({ routing, usage }, budget) {
  if (!routing?.why) return null;
  const { mode, policy, n, settings, why, expected, met, differs } = routing;
  const more = Object.entries(settings).map(([name, value]) => `, ${name} ${value}`).join("");
  const what = mode === policy ? `one sample of ${policy}` : `${mode}, N = ${number(n)}, of ${policy}`;
  return el(
    "div", { class: "chosen stack tight", role: "group", "aria-label": "Chosen by mode auto" },
    el("p", {}, "Chosen: ", el("strong", {}, `${what}${more}`), "."),
    el("p", { class: "small" }, why),
    expected && el("p", { class: "small muted" }, `Expected on average: ${figures(expected)}. This answer cost ${number(usage.generated_tokens)} tokens.`),
    budget && el("p", { class: "row small" }, el("span", { class: `badge ${met ? "good" : "warn"}` }, met ? "keeps the budget on average" : "misses the budget on average"), kept(budget, usage)),
    differs.length > 0 && el("p", { class: "notice small" }, `Sampled otherwise than it was measured (${differs.join(", ")}), so the expected figures may not hold.`),
  );
}

function figures({ reward, generated_tokens: tokens, money }) {
  const parts = [`${significant(tokens.mean)} tokens (${significant(tokens.low)} to ${significant(tokens.high)})`];
  if (reward) parts.unshift(`reward ${number(reward.mean, 2)} (${number(reward.low, 2)} to ${number(reward.high, 2)})`);
  if (money !== null) parts.push(`${significant(money)} of money`);
  return parts.join(", ");
}

/** The budget, and how this answer stands to it where that is known. */
function kept(budget, usage) {
  if (budget.tokens) return `${number(usage.generated_tokens)} of ${number(budget.tokens)} tokens in this answer`;
  return budget.money ? `at most ${significant(budget.money)} of money` : `a reward of at least ${significant(budget.reward)}`;
}
