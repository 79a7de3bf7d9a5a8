// What was collected, trained, compared and promoted, and what all of it has saved.

import { counted, duration, el, number, percent } from "../../dom.js";

/** One card a figure; `rollout` is null where checkpoints are not served. */
export function tiles(collected, rollout) {
  return el("div", { class: "grid distil-tiles" }, [kept(collected), ...(rollout ? [trained(rollout), compared(rollout), promoted(rollout), saved(rollout)] : [])]);
}

function tile(name, value, ...lines) {
  return el(
    "section", { class: "card stack tight", "aria-label": name },
    el("h2", {}, name), el("p", { class: "value" }, value),
    lines.filter(Boolean).map((line) => el("p", { class: "muted small" }, line)),
  );
}

function kept({ lines, bytes, max_bytes: most, identities, dropped }) {
  const candidates = identities.reduce((sum, one) => sum + one.candidates, 0);
  const lost = Object.values(dropped).reduce((sum, count) => sum + count, 0);
  return tile(
    "Collected", counted(lines, "answer"),
    `${counted(candidates, "candidate")}, ${percent(bytes / most)} of the room`,
    lost > 0 && `${number(lost)} not kept since the start`,
  );
}

function trained({ checkpoints, training_s: seconds, training_tokens: tokens }) {
  return tile("Trained", counted(checkpoints.length, "checkpoint"), seconds > 0 && `${duration(seconds * 1000)} of training`, tokens > 0 && `${counted(tokens, "token")} generated for it`);
}

function compared({ shadows, n }) {
  const skipped = Object.values(shadows.skipped).reduce((sum, count) => sum + count, 0);
  return tile(
    "Compared", counted(shadows.done, "answer"),
    `each with ${n} samples of the reference, ${counted(shadows.tokens, "token")} in all`,
    skipped > 0 && `${number(skipped)} left out since the start: users come first`,
  );
}

function promoted({ checkpoints, live, next }) {
  const were = checkpoints.filter((one) => one.was_live).length;
  return tile("Promoted", counted(were, "checkpoint"), live ? `${live} is live` : "none is live", next && `${next} is being rolled out`);
}

/** Tokens of the whole story against those of best-of-N for every answer. */
export function balance({ arms, shadows, saved_tokens: saved, training_tokens: training }) {
  const answers = arms.reduce((sum, arm) => sum + arm.tokens, 0);
  const spent = answers + shadows.tokens + training;
  const net = saved - training;
  return { net, spent, always: spent + net };
}

function saved(rollout) {
  const { net, spent, always } = balance(rollout);
  const share = always > 0 ? ` (${percent(Math.abs(net) / always)})` : "";
  return tile(
    net < 0 ? "Not paid back yet" : "Saved", `${counted(Math.round(Math.abs(net)), "token")}${share}`,
    `spent ${number(spent)}, training and comparisons included; always best-of-${rollout.n}: ${number(Math.round(always))}`,
  );
}
