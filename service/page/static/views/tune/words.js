// Gains, prices and states of a tuning run in words.

import { duration, number, significant } from "../../dom.js";

export const GAINS = { reward: "reward", gold: "gold reward", "win-rate": "win rate" };

export const ENDED = {
  recommended: "it recommends a setting",
  unmet: "no setting reaches the target",
  interrupted: "it was interrupted",
  failed: "it failed",
};

/** `1.23 (1.10 to 1.36)`. */
export function interval({ mean, low, high }, digits = 2) {
  return low === high ? number(mean, digits) : `${number(mean, digits)} (${number(low, digits)} to ${number(high, digits)})`;
}

/** A price of the question, such as `48.2 tokens`. */
export function price(question, found) {
  if (!found) return "price unknown";
  if (question.price === "latency") return `${duration(found.mean * 1000)} on average`;
  if (inMoney(question)) return `${significant(found.mean * 1000)} ${question.currency} per 1,000 answers`;
  return `${significant(found.mean)} tokens`;
}

/** What a price axis shows: `{label, of}`, `of` a function from a price to its value there. */
export function priceAxis(question) {
  if (question.price === "latency") return { label: "mean latency, ms", of: (value) => value * 1000 };
  if (inMoney(question)) return { label: `${question.currency} per 1,000 answers`, of: (value) => value * 1000 };
  return { label: "tokens an answer", of: (value) => value };
}

function inMoney(question) {
  return question.price === "cost" && question.price_per_hour !== null;
}

/** Whether a setting holds: it reaches the target, within the limits. */
export function holds(setting) {
  return setting.reaches && setting.over_limits.length === 0;
}

/** How far the lower bound of a setting is from the target, and the limits that it breaks. */
export function bound(question, setting) {
  const parts = [...setting.over_limits];
  const { margin } = setting;
  if (margin) {
    const distance = number(Math.abs(margin.low), 3);
    parts.unshift(
      setting.reaches
        ? `Its lower bound is ${distance} above ${question.target}`
        : `Its lower bound misses ${question.target} by ${distance}`,
    );
  } else {
    parts.unshift("The highest gain within the limits is sought");
  }
  return `${parts.join("; ")}.`;
}

/** The gain that the page looks at: the judge of the comparison where the run has it, or else the question's. */
export function gainOf(report, judge) {
  const measured = report.trials.some((one) => one.best?.gains[judge]) || report.front.some((one) => one.gains[judge]);
  return judge && measured ? judge : report.question.metric;
}
