// The frontier's two plots.

import { duration, number } from "../../dom.js";
import { styleOf } from "../../styles.js";

const CURVE = `var(${styleOf("bon").series})`;
const AXES = { win_rate: "win rate against the reference", reward: "mean reward" };
const GOLD = { win_rate: "gold_win_rate", reward: "gold" };

/** What `plot` draws; `field` is `win_rate` or `reward`. */
export function frontierPlot(found, field, gold) {
  const which = gold ? GOLD[field] : field;
  const policies = found.policies.filter((one) => one.kl_nats && one[which]);
  // Load tests score by the reward that selects; the gold one is not asked.
  const live = gold ? [] : found.live.filter((one) => one.kl_nats && one[field]);
  const curve = found.best_of_n.filter((one) => one[which]).sort((a, b) => a.n - b.n);
  const known = new Set(found.policies.map((one) => one.name));
  const rows = [
    ...curve.map((one) => [`best-of-${one.n}`, one.kl_nats.mean, one[which].mean]),
    ...policies.map((one) => [one.name, one.kl_nats.mean, one[which].mean]),
    ...live.map((one) => [`${named(one)}, live`, one.kl_nats.mean, one[field].mean]),
  ];
  return {
    label: `KL and ${AXES[field]}: ${rows.map(([name, kl, value]) => `${name}: ${number(kl, 2)} nats, ${number(value, 3)}`).join("; ")}`,
    x: { label: "KL from the reference, nats", zero: true },
    y: { label: `${gold ? "gold " : ""}${AXES[field]}` },
    empty: gold ? "the gold reward model has judged nothing" : "nothing is measured",
    series: [
      ...(field === "win_rate" && !gold ? [ceiling(found.bounds)] : []),
      ...(curve.length ? [measured(curve, which)] : []),
      ...policies.map((one) => policy(one, which)),
      ...live.map((one) => served(one, field, known.has(one.mode))),
    ],
    table: { columns: ["method", "KL, nats", AXES[field]], rows },
  };
}

export function named({ mode, n }) {
  return n > 1 ? `${mode}, N = ${n}` : mode;
}

function ceiling(bounds) {
  return {
    name: "best-of-n in theory", colour: CURVE, symbol: null, line: "dotted",
    points: bounds.map((one) => ({ x: one.kl_nats, y: one.win_rate })),
  };
}

function measured(curve, which) {
  return {
    name: "best-of-n measured", colour: CURVE, symbol: "circle", line: "solid",
    points: curve.map((one) => ({
      x: one.kl_nats.mean, y: one[which].mean, y_low: one[which].low, y_high: one[which].high, text: `${one.n}`, size: 0.7,
      about: `best-of-${one.n}\nKL at most ${number(one.kl_nats.mean, 3)} nats\n${interval(one[which])}`,
    })),
  };
}

function policy(one, which) {
  const { series, symbol } = styleOf(one.name);
  const { kl_nats: kl } = one;
  const { mean, low, high } = one[which];
  return {
    name: one.name, colour: `var(${series})`, symbol, line: null,
    points: [{ x: kl.mean, x_low: kl.low, x_high: kl.high, y: mean, y_low: low, y_high: high, text: one.name, size: 1.3, about: card(one) }],
  };
}

function served(one, field, labelled) {
  const { series, symbol } = styleOf(one.mode);
  const { kl_nats: kl } = one;
  const { mean, low, high } = one[field];
  return {
    name: "open marks: live, by load tests", colour: `var(${series})`, symbol, line: null,
    points: [{
      x: kl.mean, y: mean, y_low: low, y_high: high, text: labelled ? null : named(one), kind: "open", size: 1.2,
      about: `${named(one)}, live\nKL ${kl.kind === "upper bound" ? "at most " : ""}${number(kl.mean, 3)} nats\n${interval(one[field])}\nload test ${one.run}`,
    }],
  };
}

/** The card, as the pointer finds it. */
function card(one) {
  const { training, kl_nats: kl } = one;
  const lines = [one.name];
  if (training) lines.push(training.description);
  lines.push(`KL ${number(kl.mean, 3)} nats${kl.kind ? ` (${kl.kind})` : ""}`);
  lines.push(`win rate ${interval(one.win_rate)}`);
  if (one.reward) lines.push(`reward ${interval(one.reward)}`);
  if (one.gold) lines.push(`gold reward ${interval(one.gold)}`);
  if (training?.cost) {
    if (training.cost.steps !== null) lines.push(`${number(training.cost.steps)} steps`);
    lines.push(`trained ${duration(training.cost.training_seconds * training.cost.processes * 1000)}`);
  }
  lines.push(one.policy.revision);
  return lines.join("\n");
}

function interval({ mean, low, high, count }) {
  return count ? `${number(mean, 3)} [${number(low, 3)}, ${number(high, 3)}]` : number(mean, 3);
}
