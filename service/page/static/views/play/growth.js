// The way to an answer, where its mode dropped partial ones: treebon's tree, and speculative rejection's checks.

import { counted, el, number } from "../../dom.js";
import { onDemand } from "./on_demand.js";

const ORDER = ["kept", "ended", "dropped"];

/** A part that is shown on demand; null for other modes, and where nothing was to drop. */
export function growth(answer) {
  const mode = answer.routing?.mode ?? answer.mode;
  if (!answer.candidates) return null;
  if (mode === "treebon" && answer.details.branches?.length) return tree(answer);
  if (mode === "speculative-rejection" && answer.details.checks?.length) return checks(answer);
  return null;
}

function tree({ mode, details, candidates, selected_index: selected }) {
  const { branches, layers, guide, branches_left_out: leftOut } = details;
  const children = new Map(); // of a place, or of null: the places
  branches.forEach(({ parent }, place) => children.set(parent, [...(children.get(parent) ?? []), place]));
  const reward = new Map(candidates.map((candidate) => [candidate.index, candidate.reward]));
  const rank = (place) => ORDER.indexOf(branches[place].state);
  const list = (parent, props = {}) => {
    const places = children.get(parent) ?? [];
    if (places.length === 0) return null;
    const sorted = places.sort((one, other) => rank(one) - rank(other) || one - other);
    return el("ul", props, sorted.map((place) => el("li", {}, branch(branches[place], { reward, selected }), list(place))));
  };
  const dropped = branches.filter(({ state }) => state === "dropped").length;
  const told = leftOut > 0 ? `, the first ${number(branches.length)} partial answers: ` : `, ${number(branches.length)} partial answers: `;
  return onDemand(
    `${mode}: growth`, `The tree: ${counted(layers, "layer")}${told}${number(dropped)} dropped`,
    el("p", { class: "muted" }, `In each layer the partial answers with the highest mean log-ratio of ${guide} to the policy are kept and continued; those that ended wait for the final choice.`),
    list(null, { class: "tree", tabindex: 0, "aria-label": `tree of ${mode}` }),
    leftOut > 0 && el("p", { class: "muted" }, `${number(leftOut)} of later layers are left out here.`),
  );
}

function branch({ text, state, log_ratio: ratio, candidate }, { reward, selected }) {
  const leaf = candidate === selected ? "chosen" : "ended";
  const facts =
    state === "ended" ? `candidate ${number(candidate + 1)}, reward ${number(reward.get(candidate) ?? null, 2)}` : ratio !== null && `log-ratio ${number(ratio, 2)}`;
  return el(
    "div", { class: "branch", data: { state: state === "ended" ? leaf : state } },
    el("span", { class: "branch-state" }, state === "ended" ? leaf : state), " ",
    el("span", { class: "branch-text" }, text.trim() === "" ? el("em", {}, "nothing more") : text), " ",
    facts && el("span", { class: "muted" }, facts),
  );
}

function checks({ mode, details, candidates }) {
  const all = candidates.length;
  const whole = candidates.filter((candidate) => candidate.finish_reason !== "rejected").length;
  const step = (when, left) =>
    el(
      "li", {}, el("span", {}, when),
      el("span", { class: "bar", "aria-hidden": "true" }, el("span", { vars: { "--part": String(left / all) } })),
      el("span", {}, `${number(left)} left`),
    );
  return onDemand(
    `${mode}: growth`, `The checks: ${number(all)} candidates, ${number(whole)} decoded to the end`,
    el(
      "ol", { class: "steps" }, step("at first", all),
      details.checks.map(({ tokens, left }) => step(`after ${counted(tokens, "token")}`, left)),
    ),
  );
}
