// The verdict in sentences.

import { duration, number, significant } from "../../dom.js";
import { median } from "../../verdict.js";

const JUDGES = { reward: "reward", gold: "gold reward" };

/** The first sentence: when the fine-tune pays, or why there is no such number. */
export function headline(verdict) {
  const { pair, paysAfter, ratio, training, tuned, sampled, choice } = verdict;
  const [one, many] = [pair.tuned, pair.sampled];
  const close = `Whether an answer of ${one} costs less than one of ${many} is too close to call.`;
  if (pair.state === "not measured") return `Not measured: whether ${one} can replace ${many}.`;
  if (tuned.level === null && sampled.level === null) return "Neither keeps this latency limit at any load that was measured.";
  if (sampled.level === null) return `Only ${one} keeps this latency limit at a load that was measured.`;
  if (tuned.level === null) return `Only ${many} keeps this latency limit at a load that was measured.`;
  if (choice === "trade") return `A trade: an answer of ${one} costs no less than one of ${many}, and is better.`;
  if (ratio.high <= 1) return `Keep ${many}: an answer of ${one} costs no less.`;
  if (ratio.low <= 1) return close;
  if (training === null) return `${one} costs ${times(ratio)} less an answer. How long did its training take?`;
  if (paysAfter.point === null) return close;
  if (pair.state === "preliminary") return `Preliminary: fine-tuning (${one}) would pay after ${range(paysAfter)} answers.`;
  return `Fine-tuning (${one}) pays after ${range(paysAfter)} answers.`;
}

/** How long the answers to break-even take; null where there are none. */
export function paybackTime({ paysAfter, sampled, pair }) {
  if (paysAfter.point === null || sampled.level === null) return null;
  const rate = median(sampled.level.rounds.map((round) => round.answers_per_s));
  if (!(rate > 0)) return null;
  return `${lasting(paysAfter.point / rate)} of ${pair.sampled} at full load`;
}

/** The reward given up, and the N that reaches what is left. */
export function quality({ pair, judge }) {
  const given = pair.given_up[judge];
  if (!given) return `Nobody has measured how the two differ in ${JUDGES[judge]}.`;
  const kind = JUDGES[judge];
  const size = `${number(Math.abs(given.mean), 2)} of ${kind} (${ends(given)})`;
  const first =
    given.low > 0 ? `You give up ${size}.`
    : given.high < 0 ? `You gain ${size}.`
    : `Their ${kind} is too close to call: between ${number(Math.max(0, given.high), 2)} worse and ${number(Math.max(0, -given.low), 2)} better.`;
  const equal = judge === pair.judged_by ? equalN(pair) : null; // by the other judge it is another n
  return equal ? `${first} ${pair.tuned} is ${equal}.` : first;
}

/** `as good as best-of-8.9 (8.2 to 9.7)`, by the judge of the load test; null if unknown. */
export function equalN(pair) {
  if (pair.equal_n === null) return null;
  if (pair.equal_n_beyond) return pair.equal_n <= 1 ? "worse than one sample of the reference" : `better than best-of-${number(pair.equal_n)}`;
  const low = pair.equal_n_low_open ? "below 1" : number(pair.equal_n_low, 1);
  const high = `${pair.equal_n_high_open ? "above " : ""}${number(pair.equal_n_high, 1)}`;
  return `as good as best-of-${number(pair.equal_n, 1)} (${low} to ${high})`;
}

/** What to do at the volume chosen. */
export function atVolume({ choice, volume, tuned, sampled, pair, currency, training }) {
  const answers = `${significant(volume, 3)} answers`;
  if (tuned.total === null || sampled.total === null) return null;
  const without = training === null ? " before training" : "";
  const money = `${significant(tuned.total)} ${currency} with ${pair.tuned}${without}, ${significant(sampled.total)} ${currency} with ${pair.sampled}`;
  const advice = {
    tuned: "Fine-tune", sampled: `Keep ${pair.sampled}`, close: "Too close to call", trade: "A trade", unknown: "Not decided",
  }[choice];
  return `${advice} for ${answers}: ${money}.`;
}

/** `1,600 to 2,500`, or `more than 1,600` where the other end is open. */
export function range({ point, low, high }) {
  const [from, to] = [significant(low, 2), significant(high, 2)];
  if (high === null) return `more than ${from}`;
  return from === to ? `about ${significant(point, 2)}` : `${from} to ${to}`;
}

function times({ low, high }) {
  const [from, to] = [significant(low, 2), significant(high, 2)];
  return from === to ? `${from} times` : `${from} to ${to} times`;
}

function ends({ low, high }) {
  const [from, to] = [Math.abs(low), Math.abs(high)].sort((a, b) => a - b);
  return low < 0 && high > 0 ? `${number(low, 2)} to ${number(high, 2)}` : `${number(from, 2)} to ${number(to, 2)}`;
}

/** Seconds in the largest unit that has at least two of them. */
export function lasting(seconds) {
  const units = [[86_400, "days"], [3600, "hours"], [60, "minutes"]];
  for (const [size, name] of units) if (seconds >= 2 * size) return `${number(seconds / size)} ${name}`;
  return seconds >= 1 ? `${number(seconds)} seconds` : duration(seconds * 1000);
}

/** The state of a pair as a badge: `[words, kind, explanation]`. */
export function confidence({ pair }, found) {
  if (pair.state === "decided") {
    const rounds = Math.max(...found.sides.map((side) => Math.max(0, ...side.levels.map((level) => level.rounds.length))));
    return ["Decided", "good", `measured in ${rounds} rounds on ${found.prompts} prompts`];
  }
  if (pair.state === "preliminary") return ["Preliminary", "warn", "confidence is low"];
  return ["Not measured", "bad", ""];
}
