// A question before a step that changes which answers people get.

import { el } from "../../dom.js";

export class Confirmation {
  #question = el("p", { id: "distil-question" });
  #yes = el("button", { type: "submit", class: "button primary", value: "yes" });

  constructor() {
    this.node = el(
      "dialog", { "aria-labelledby": "distil-question" },
      el(
        "form", { method: "dialog", class: "stack" },
        this.#question,
        el("div", { class: "row end" }, el("button", { type: "submit", class: "button", value: "no" }, "Cancel"), this.#yes),
      ),
    );
  }

  /** Whether the visitor wants it. */
  ask({ question, action }) {
    this.#question.textContent = question;
    this.#yes.textContent = action;
    this.node.returnValue = "no"; // also where it is closed by Escape
    this.node.showModal();
    return new Promise((resolve) => {
      this.node.addEventListener("close", () => resolve(this.node.returnValue === "yes"), { once: true });
    });
  }
}
