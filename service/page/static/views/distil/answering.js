// Who answers requests of mode auto now, and in which shares.

import { el, percent, replace } from "../../dom.js";

const COLOURS = { bon: "--series-6", live: "--series-3", next: "--series-1" };

export class Answering {
  #shares = el("div", { class: "shares", role: "img" });
  #legend = el("ul", { class: "legend" });
  #notes = el("div", { class: "stack tight" });
  #back;
  #rollout = null;

  constructor({ onBestOfN }) {
    this.#back = el("button", { type: "button", class: "button slim", on: { click: () => onBestOfN(this.#rollout) } });
    this.node = el(
      "section", { class: "card stack tight", "aria-labelledby": "answering-title" },
      el("div", { class: "row apart" }, el("h2", { id: "answering-title" }, "Who answers mode auto"), this.#back),
      this.#shares, this.#legend, this.#notes,
    );
  }

  show(rollout) {
    this.#rollout = rollout;
    const { n, live, next, stored, approve } = rollout;
    const arms = rollout.arms.filter((arm) => arm.share > 0);
    const words = arms.map((arm) => `${named(arm, n)} ${percent(arm.share)}`);
    this.#shares.setAttribute("aria-label", words.join(", "));
    replace(this.#shares, arms.map((arm) => el("span", { vars: { "--share": arm.share, "--colour": `var(${COLOURS[arm.arm]})` } })));
    replace(this.#legend, arms.map((arm, i) => el("li", {}, el("span", { class: "spot", "aria-hidden": "true", vars: { "--colour": `var(${COLOURS[arm.arm]})` } }), words[i])));
    this.#back.textContent = `Back to best-of-${n}`;
    this.#back.hidden = !live && !next;
    replace(
      this.#notes,
      approve && el("p", { class: "muted small" }, "A person must promote each checkpoint."),
      !stored && el("p", { class: "notice small" }, "The store cannot be written now. What was decided holds, and is stored as soon as that is possible."),
    );
  }
}

function named({ arm, checkpoint }, n) {
  if (arm === "bon") return `best-of-${n}`;
  return arm === "live" ? `${checkpoint}, live` : `${checkpoint}, new`;
}
