// The runs of the store.

import { comparison } from "./comparison.js";
import { el, replace } from "../../dom.js";
import { reportLink } from "./report.js";

export class Kept {
  #onShow;
  #onCompare;
  #list = el("div", {});
  #compared = el("div", { class: "compared" });
  #buttons = new Map(); // run id -> its button that compares
  #shown = null; // id of the run whose figures are on the page

  constructor({ onShow, onCompare }) {
    this.#onShow = onShow;
    this.#onCompare = onCompare;
    this.node = el("section", { class: "card stack tight", "aria-labelledby": "kept-title" }, el("h2", { id: "kept-title" }, "Past runs"), this.#list, this.#compared);
  }

  show({ kept, runs }) {
    if (runs.length) replace(this.#list, this.#runs(runs));
    else {
      const words = kept
        ? "None yet. Runs of vbon loadtest on the same --store appear here too."
        : "This server keeps no runs; start it with --store FILE.";
      replace(this.#list, el("div", { class: "empty" }, el("p", {}, words)));
    }
  }

  /** Which run the page shows, so that others can be compared with it; null: none. */
  showing(id) {
    this.#shown = id;
    replace(this.#compared);
    for (const [run, button] of this.#buttons) button.hidden = id === null || run === id;
  }

  /** A comparison, below the list. */
  compared(found) {
    replace(this.#compared, comparison(found));
    this.#compared.scrollIntoView({ block: "nearest" });
  }

  #runs(runs) {
    this.#buttons.clear();
    return el("ul", { class: "runs" }, runs.map((run) => this.#run(run)));
  }

  #run(run) {
    const when = new Date(run.created);
    const name = `Show run ${run.id}`;
    const compare = el(
      "button",
      { type: "button", class: "button quiet slim", "aria-label": `Compare the run shown with run ${run.id}`, on: { click: () => this.#onCompare(run.id) } },
      "Compare",
    );
    compare.hidden = this.#shown === null || this.#shown === run.id;
    this.#buttons.set(run.id, compare);
    return el(
      "li", {},
      el(
        "div", { class: "row apart" },
        el(
          "span", { class: "row" },
          el("time", { datetime: run.created }, when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })),
          el("span", { class: "mono muted" }, run.id),
          run.tags.map((tag) => el("span", { class: "badge" }, tag)),
        ),
        el(
          "span", { class: "row" },
          compare,
          el("button", { type: "button", class: "button quiet slim", "aria-label": name, on: { click: () => this.#onShow(run.id) } }, "Show"),
          reportLink(run.id, "Report"),
        ),
      ),
      el("p", { class: "small" }, run.headline),
    );
  }
}
