// The runs of the store.

import { el, replace } from "/page/dom.js";
import { reportLink } from "/page/views/measure/report.js";

export class Kept {
  #onShow;
  #list = el("div", {});

  constructor({ onShow }) {
    this.#onShow = onShow;
    this.node = el("section", { class: "card stack tight", "aria-labelledby": "kept-title" }, el("h2", { id: "kept-title" }, "Past runs"), this.#list);
  }

  show({ kept, runs }) {
    if (runs.length) replace(this.#list, this.#runs(runs));
    else {
      const words = kept
        ? "None yet. Runs of python -m service.loadtest on the same --store appear here too."
        : "This server keeps no runs; start it with --store FILE.";
      replace(this.#list, el("div", { class: "empty" }, el("p", {}, words)));
    }
  }

  #runs(runs) {
    return el("ul", { class: "runs" }, runs.map((run) => this.#run(run)));
  }

  #run(run) {
    const when = new Date(run.created);
    const name = `Show run ${run.id}`;
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
          el("button", { type: "button", class: "button quiet slim", "aria-label": name, on: { click: () => this.#onShow(run.id) } }, "Show"),
          reportLink(run.id, "Report"),
        ),
      ),
      el("p", { class: "small" }, run.headline),
    );
  }
}
