// The two sides by cost, latency and quality.

import { duration, el, number, percent, significant } from "../../dom.js";
import { styleOf } from "../../styles.js";

/** One tile a figure; figures that nobody measured have none. `asks`: whether to ask for verdicts of people. */
export function tiles(verdict, { asks = false } = {}) {
  const { pair, tuned, sampled, currency, volume } = verdict;
  const sides = [tuned, sampled];
  const found = [
    tile("Cost of 1,000 answers", "at the highest throughput measured", sides, ({ cost }) => cost !== null && `${significant(1000 * cost)} ${currency}`),
    tile(`Cost of ${significant(volume)}`, "training included", sides, ({ total }) => total !== null && `${significant(total)} ${currency}`),
    tile("p95 latency", "at that throughput", sides, ({ level }) => level && level.p95_ms !== null && [duration(level.p95_ms), el("span", { class: "muted small" }, ` ${level.load}`)]),
    tile("Tokens an answer", "generated, discarded ones included", sides, ({ side }) => side.tokens_per_answer !== null && significant(side.tokens_per_answer)),
    tile("Reward", "by the model that best-of-N selects by", sides, ({ side }) => interval(side.rewards.reward)),
    tile("Gold reward", "by a model that neither selects nor trains", sides, ({ side }) => interval(side.rewards.gold)),
    tile("Win rate", "against one sample of the reference", sides, ({ side }) => share(side.win_rates.reward)),
    tile("Gold win rate", "the same by the gold reward model", sides, ({ side }) => share(side.win_rates.gold)),
    (asks || pair.people) && people(pair),
  ];
  return el("div", { class: "tiles" }, found.filter(Boolean));
}

function tile(name, hint, sides, value) {
  const shown = sides.map((one) => value(one) || null);
  if (shown.every((one) => one === null)) return null;
  return el(
    "section", { class: "card tile", "aria-label": name },
    el("h3", {}, name), el("p", { class: "muted small" }, hint),
    el("dl", {}, sides.map((one, i) => [label(one.side.variant), el("dd", {}, shown[i] ?? "–")])),
  );
}

function people({ people: found, tuned, sampled }) {
  if (!found) {
    return el(
      "section", { class: "card tile", "aria-label": "People" }, el("h3", {}, "People"),
      el("p", { class: "muted small" }, `Nobody has judged ${tuned} against ${sampled} yet.`),
      el("a", { href: "#play" }, "Judge some pairs"),
    );
  }
  const verdicts = found.wins + found.losses + found.ties;
  return el(
    "section", { class: "card tile", "aria-label": "People" }, el("h3", {}, "People"),
    el("p", { class: "muted small" }, `${number(verdicts)} blind verdicts, ${number(found.ties)} of them ties`),
    el("dl", {}, label(tuned), el("dd", {}, share(found.win_rate)), label(sampled), el("dd", {}, percent(1 - found.win_rate.mean))),
  );
}

function label(variant) {
  return el("dt", {}, el("span", { class: "swatch", vars: { "--own": `var(${styleOf(variant).series})` }, "aria-hidden": "true" }), variant);
}

function interval(found) {
  return found && [number(found.mean, 2), el("span", { class: "muted small" }, ` ${number(found.low, 2)} to ${number(found.high, 2)}`)];
}

function share(found) {
  return found && [percent(found.mean), el("span", { class: "muted small" }, ` ${number(100 * found.low)} to ${number(100 * found.high)}`)];
}
