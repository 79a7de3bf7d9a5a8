// What happened to the checkpoints, the newest first.

import { counted, el, number, percent, replace } from "../../dom.js";

const SHOWN = 30;
const WORDS = {
  submitted: () => "was submitted",
  approved: () => "was promoted by a person",
  started: () => "begins its rollout",
  advanced: ({ share }) => `gets ${percent(share)} of the requests`,
  live: () => "is live",
  retired: ({ reason }) => `was put aside: ${reason}`,
  refused: ({ reason }) => `was refused by ${reason === "person" ? "a person" : "its decision"}`,
  rolled_back: ({ reason, message }) => `was rolled back: ${REASONS[reason] ?? reason}${message ? ` (${message})` : ""}`,
  restarted: ({ reason }) => `is tested anew: ${reason ?? "the settings"} changed`,
  verified: () => "is good enough with the changed models, too",
};
const REASONS = { win_rate: "its win rate is below what is required", fall: "it has become worse", person: "a person decided so", failed: "it could not be loaded" };

export class History {
  #list = el("ul", { class: "runs" });
  #told = "";

  constructor() {
    this.node = el("section", { class: "card stack tight", "aria-labelledby": "history-title" }, el("h2", { id: "history-title" }, "What happened"), this.#list);
  }

  show({ events }) {
    this.node.hidden = events.length === 0;
    const told = JSON.stringify(events.slice(0, SHOWN));
    if (told === this.#told) return;
    this.#told = told;
    replace(this.#list, events.slice(0, SHOWN).map(item));
  }
}

function item({ created, checkpoint, kind, detail }) {
  const when = new Date(created).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const words = WORDS[kind]?.(detail) ?? kind;
  const measured = detail.shadows > 0 ? `, win rate ${number(detail.win_rate, 3)} of ${counted(detail.shadows, "comparison")}` : "";
  return el("li", { class: "row" }, el("time", { class: "muted small", datetime: created }, when), el("span", {}, el("strong", {}, checkpoint), ` ${words}${measured}`));
}
