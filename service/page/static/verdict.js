// Computes the verdict from a load test's rounds, as service/loadtest/analysis/break_even.py does, for any
// price, training time, volume and latency limit. Nothing here touches the page.

const SECONDS_PER_HOUR = 3600;
const OUTSIDE = 2 * 0.5 ** 5; // probability that the smallest and the largest of five miss the median
const JUDGES = ["reward", "gold"];
export const DEFAULT_VOLUME = 1e6;

/** The pair that is asked for, or the one of the largest N. */
export function chosenPair(found, { tuned, mode, n }) {
  const sides = sidesOf(found);
  const fits = (pair) => {
    const many = sides.get(pair.sampled);
    return (tuned === null || sides.get(pair.tuned).mode === tuned) && (mode === null || many.mode === mode) && (n === null || many.n === n);
  };
  return found.pairs.find(fits) ?? found.pairs[0] ?? null;
}

export function sidesOf(found) {
  return new Map(found.sides.map((side) => [side.variant, side]));
}

/**
 * Everything that the Decide view shows of a pair. Costs are in the currency of the load test.
 *
 * `tuned`, `sampled`: `{side, level, cost, low, high, total, totalLow, totalHigh}`, `level` being the load level
 * with the most answers a second whose p95 keeps the limit, or null; `cost` of one answer, `total` of all.
 * `training`: the cost of training, null if unknown. `paysAfter`: `{point, low, high}` in answers; `point` null
 * if it never pays or the training's cost is unknown, an end null if it never pays there.
 * `choice`: `tuned`, `sampled`, `close`, `trade` (the fine-tune costs no less and is better) or `unknown`, at the volume.
 */
export function verdictOf(found, values) {
  const pair = chosenPair(found, values);
  if (pair === null) return null;
  const sides = sidesOf(found);
  const price = values.price ?? found.price_per_hour;
  const hours = values.hours ?? pair.training_hours;
  const volume = values.volume ?? DEFAULT_VOLUME;
  const judge = JUDGES.includes(values.judge) ? values.judge : pair.judged_by;
  const training = hours === null ? null : hours * (found.training_price_per_hour ?? price);
  const levels = [pair.tuned, pair.sampled].map((name) => levelWithin(sides.get(name), values.p95));
  const [ours, theirs] = pricesOf(levels, price);
  const tuned = costs(sides.get(pair.tuned), levels[0], ours, volume, training ?? 0);
  const sampled = costs(sides.get(pair.sampled), levels[1], theirs, volume, 0);
  const priced = ours !== null && theirs !== null;
  const paysAfter = priced ? paidAfter(training, ours, theirs) : { point: null, low: null, high: null };
  const ratio = priced ? enclosing(median(theirs.prices) / median(ours.prices), ends(ours, theirs, (own, other) => other / own)) : null;
  const verdict = { pair, judge, price, hours, volume, training, tuned, sampled, paysAfter, ratio, currency: found.currency };
  return { ...verdict, choice: choiceOf(verdict) };
}

function choiceOf({ pair, judge, tuned, sampled, paysAfter, ratio, training, volume }) {
  if (tuned.level === null || sampled.level === null) {
    if (tuned.level === sampled.level) return "unknown";
    return tuned.level === null ? "sampled" : "tuned";
  }
  if (ratio.high <= 1) return pair.given_up[judge]?.high < 0 ? "trade" : "sampled";
  if (ratio.low <= 1) return "close";
  if (training === null) return "unknown";
  if (paysAfter.point === null) return "close";
  if (paysAfter.high !== null && volume > paysAfter.high) return "tuned";
  return volume < paysAfter.low ? "sampled" : "close";
}

/** The level with the most answers a second among those whose p95 keeps the limit; null if none does. */
function levelWithin(side, limitMs) {
  const answered = side.levels.filter((level) => rateOf(level) > 0); // an SLO may have let no answer count
  const kept = answered.filter((level) => limitMs === null || (level.p95_ms !== null && level.p95_ms <= limitMs));
  if (kept.length === 0) return null;
  return kept.reduce((best, level) => (rateOf(level) > rateOf(best) ? level : best));
}

function rateOf(level) {
  return median(level.rounds.map((round) => round.answers_per_s));
}

/** Prices of an answer of both sides in the rounds that both have: `{prices, above}` each, null where one has none. */
function pricesOf([tuned, sampled], price) {
  if (tuned === null || sampled === null) return [tuned, sampled].map((level) => level && own(level, price));
  const rates = [tuned, sampled].map((level) => new Map(level.rounds.map((round) => [round.round, round.answers_per_s])));
  const both = [...rates[0].keys()].filter((round) => rates[1].get(round) > 0);
  if (both.length === 0) return [tuned, sampled].map((level) => own(level, price));
  return rates.map((rate, i) => ({ prices: both.map((round) => perAnswer(price, rate.get(round))), above: [tuned, sampled][i].above }));
}

function own(level, price) {
  return { prices: level.rounds.map((round) => perAnswer(price, round.answers_per_s)), above: level.above };
}

function perAnswer(price, rate) {
  return rate > 0 ? price / SECONDS_PER_HOUR / rate : Infinity;
}

function costs(side, level, priced, volume, fixed) {
  if (priced === null) return { side, level, cost: null, low: null, high: null, total: null, totalLow: null, totalHigh: null };
  const cost = median(priced.prices);
  const [low, high] = medianEnds(priced.prices);
  const least = Math.min(cost, low) / priced.above;
  const most = Math.max(cost, high);
  return {
    side, level, cost, low: least, high: most,
    total: fixed + volume * cost, totalLow: fixed + volume * least, totalHigh: fixed + volume * most,
  };
}

function paidAfter(training, tuned, sampled) {
  const saved = median(sampled.prices) - median(tuned.prices);
  if (training === null || !(saved > 0)) return { point: null, low: null, high: null };
  const point = training / saved;
  const needed = (own, other) => (other - own > 0 ? training / (other - own) : Infinity);
  const { low, high } = enclosing(point, ends(tuned, sampled, needed));
  return { point, low, high: Number.isFinite(high) ? high : null };
}

/** The ends of the range of a figure of each round's prices, widened by a search's bracket. */
function ends(tuned, sampled, figure) {
  const brackets = [[1, 1], [tuned.above, 1], [1, sampled.above]];
  const found = brackets.map(([own, other]) => medianEnds(tuned.prices.map((price, i) => figure(price / own, sampled.prices[i % sampled.prices.length] / other))));
  return [Math.min(...found.map(([low]) => low)), Math.max(...found.map(([, high]) => high))];
}

function enclosing(point, [low, high]) {
  return { point, low: Math.min(point, low), high: Math.max(point, high) };
}

/** Two of the values that enclose the true median with a probability of about 94% or more. */
export function medianEnds(values) {
  const ordered = [...values].sort((a, b) => a - b);
  const k = leftOut(ordered.length);
  return [ordered[k], ordered[ordered.length - 1 - k]];
}

function leftOut(count) {
  let k = 1;
  let outside = 2 ** (1 - count);
  let choose = 1; // count over k - 1
  while (2 * (k + 1) <= count) {
    choose = (choose * (count - k + 1)) / k;
    outside += 2 * choose * 0.5 ** count;
    if (outside > OUTSIDE) break;
    k += 1;
  }
  return k - 1;
}

export function median(values) {
  const ordered = [...values].sort((a, b) => a - b);
  const middle = Math.floor(ordered.length / 2);
  return ordered.length % 2 ? ordered[middle] : (ordered[middle - 1] + ordered[middle]) / 2;
}
