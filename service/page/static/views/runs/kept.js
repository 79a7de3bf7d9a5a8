// The runs of the store: two that are ticked can be compared; each can be shown, run again, named and deleted.

import { comparison, shortened } from "./comparison.js";
import { Labels } from "./labels.js";
import { el, replace } from "../../dom.js";
import { reportLink } from "./report.js";

export class Kept {
  #on;
  #title = el("h2", { id: "kept-title", tabindex: "-1" }, "Past runs");
  #list = el("div", {});
  #compared = el("div", { class: "compared" });
  #compare;
  #ticked = []; // ids of at most two runs, in the order of ticking
  #boxes = new Map(); // run id -> its box
  #runs = [];
  #shown = null; // id of the run whose figures are on the page

  /** `on`: `show(id)`, `again(id)`, `compare(b, a)`, `label(id, {name, tags})`, `remove(id)`; the last two tell whether it worked. */
  constructor(on) {
    const label = (id, labels) => this.#refocused(id, on.label(id, labels));
    this.#on = { ...on, label, remove: (id) => this.#refocused(id, on.remove(id)) };
    this.#compare = el("button", { type: "button", class: "button slim", disabled: true, on: { click: () => this.#compareTicked() } }, "Compare two");
    this.node = el(
      "section", { class: "card stack tight", "aria-labelledby": "kept-title" },
      el("div", { class: "row apart" }, this.#title, this.#compare),
      this.#list, this.#compared,
    );
  }

  show({ kept, runs }) {
    this.#runs = runs;
    this.#ticked = this.#ticked.filter((id) => runs.some((run) => run.id === id));
    this.#compare.hidden = runs.length < 2;
    replace(this.#compared);
    if (runs.length) replace(this.#list, this.#lines());
    else {
      const words = kept
        ? "None yet. Runs of vbon loadtest on the same --store appear here too."
        : "This server keeps no runs; start it with --store FILE.";
      replace(this.#list, el("div", { class: "empty" }, el("p", {}, words)));
    }
    this.#update();
  }

  /** Which run the page shows; null: none. */
  showing(id) {
    this.#shown = id;
    for (const line of this.#list.querySelectorAll("li")) line.classList.toggle("shown", line.dataset.run === id);
  }

  /** A comparison, below the list. */
  compared(found) {
    replace(this.#compared, comparison(found, (id) => called(this.#runs.find((run) => run.id === id), id)));
    this.#compared.scrollIntoView({ block: "nearest" });
  }

  /** The list is made anew after a change: the focus goes to the run that was changed, or above the list. */
  async #refocused(id, changing) {
    const done = await changing;
    const line = [...this.#list.querySelectorAll("li")].find((one) => one.dataset.run === id);
    if (done) (line?.querySelector("button[data-rename]") ?? this.#title).focus();
    return done;
  }

  #lines() {
    this.#boxes.clear();
    return el("ul", { class: "runs" }, this.#runs.map((run) => this.#line(run)));
  }

  #line(run) {
    const name = called(run, run.id);
    const button = (words, act, more = {}) =>
      el("button", { type: "button", class: "button quiet slim", "aria-label": `${words} ${name}`, on: { click: act }, ...more }, words);
    const box = el("input", { type: "checkbox", "aria-label": `Compare ${name}`, checked: this.#ticked.includes(run.id), on: { change: () => this.#tick(run.id) } });
    this.#boxes.set(run.id, box);
    const labels = new Labels({ run, name, on: this.#on });
    return el(
      "li", { class: this.#shown === run.id ? "shown" : null, data: { run: run.id } },
      el(
        "div", { class: "row apart" },
        el(
          "span", { class: "row" },
          box,
          run.name && el("strong", {}, run.name),
          el("time", { datetime: run.created }, when(run)),
          el("span", { class: "mono muted" }, run.id),
          run.tags.map((tag) => el("span", { class: "badge" }, tag)),
        ),
        el(
          "span", { class: "row" },
          button("Show", () => this.#on.show(run.id)),
          button("Again", () => this.#on.again(run.id), { title: "Put its settings into the form above" }),
          labels.rename, labels.remove,
          reportLink(run.id, "Report"),
        ),
      ),
      labels.node,
      el("p", { class: "small says" }, run.headline),
      models(run),
    );
  }

  /** The two that were ticked last; a third one takes the place of the first. */
  #tick(id) {
    this.#ticked = this.#ticked.includes(id) ? this.#ticked.filter((one) => one !== id) : [...this.#ticked.slice(-1), id];
    this.#update();
  }

  #update() {
    for (const [id, box] of this.#boxes) box.checked = this.#ticked.includes(id);
    this.#compare.disabled = this.#ticked.length < 2;
  }

  /** The newer one against the older one; the list has the newest first. */
  #compareTicked() {
    const [newer, older] = this.#runs.map((run) => run.id).filter((id) => this.#ticked.includes(id));
    this.#on.compare(newer, older);
  }
}

function when(run) {
  return new Date(run.created).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

/** What people call a run. */
function called(run, id) {
  return run?.name ?? `run ${id}`;
}

function models(run) {
  const found = Object.entries(run.models);
  if (found.length === 0) return null;
  return el("p", { class: "muted small" }, found.map(([name, revision], i) => [i ? ", " : "", name, " ", el("span", { class: "mono" }, shortened(revision))]));
}
