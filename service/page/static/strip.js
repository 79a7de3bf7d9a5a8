// The verdict in one line, above every view but the one that explains it.

import { comparison } from "./comparison.js";
import { decision } from "./decision.js";
import { el, replace } from "./dom.js";
import { verdictOf } from "./verdict.js";
import { confidence, headline, quality } from "./views/decide/words.js";

export class Strip {
  #node;
  #hidden = true;

  constructor(node) {
    this.#node = node;
    decision.addEventListener("change", () => this.#show());
    comparison.addEventListener("change", () => this.#show());
  }

  hide(hidden) {
    this.#hidden = hidden;
    this.#show();
  }

  #show() {
    const { found } = decision;
    this.#node.hidden = this.#hidden || found === null;
    if (this.#node.hidden) return;
    const verdict = verdictOf(found, comparison.values);
    const more = el("a", { href: comparison.link("decide") }, "Why");
    if (verdict === null) {
      replace(this.#node, el("span", { class: "badge bad" }, "Not measured"), "Nobody has measured yet whether the fine-tune pays.", more);
      return;
    }
    const [state, kind] = confidence(verdict, found);
    replace(this.#node, el("span", { class: `badge ${kind}` }, state), headline(verdict), " ", quality(verdict), more);
  }
}
