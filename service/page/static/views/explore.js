// Explore: how far each policy has moved from the reference, and what that bought.

import { ApiError, get } from "../api.js";
import { plot } from "../charts.js";
import { comparison } from "../comparison.js";
import { decision } from "../decision.js";
import { el, replace } from "../dom.js";
import { trouble } from "./play/trouble.js";
import { cards, marked, table } from "./explore/cards.js";
import { frontierPlot } from "./explore/plots.js";

export const title = "Explore";

let view = null;

/** Made once; what it shows is asked for anew each time it is opened. */
export function mount(root, context) {
  view ??= new Explore(context);
  root.append(...view.parts);
  view.shown();
}

export function unmount() {
  view.left();
}

class Explore {
  #server;
  #here = false;
  #found = null;
  #body = el("div", { class: "stack" });
  #gold = el("input", { type: "checkbox" });
  #winRate = el("div", {});
  #reward = el("div", {});

  constructor({ server }) {
    this.#server = server;
    this.#gold.checked = comparison.values.judge === "gold";
    this.#gold.addEventListener("change", () => {
      comparison.set({ judge: this.#gold.checked ? "gold" : "reward" });
      this.#draw();
    });
    this.parts = [el("h1", { class: "unseen" }, title), this.#body];
    replace(this.#body, el("div", { class: "empty" }, el("p", {}, "Waiting for the server.")));
    server.addEventListener("change", () => this.#load());
    decision.addEventListener("change", () => this.#found && this.#show(this.#found));
  }

  shown() {
    this.#here = true;
    this.#gold.checked = comparison.values.judge === "gold";
    this.#load();
  }

  left() {
    this.#here = false;
  }

  async #load() {
    if (!this.#here || this.#server.state !== "ready") return;
    try {
      this.#show(await get("/frontier"));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(this.#body, trouble(error, { retry: () => this.#load() }));
    }
  }

  #show(found) {
    this.#found = found;
    const notes = el("ul", { class: "notes" }, found.notes.map((note) => el("li", {}, marked(note))));
    const known = found.best_of_n.length || found.live.length || found.policies.some((one) => one.reward);
    if (!known) {
      const missing = [...found.policies.flatMap((one) => one.notes.map((note) => `${one.name}: ${note}`)), ...found.notes];
      replace(
        this.#body,
        el(
          "div", { class: "empty" }, el("p", {}, "Nobody has measured these models yet."),
          el("ul", { class: "notes" }, missing.map((note) => el("li", {}, marked(note)))),
        ),
      );
      return;
    }
    const gold = found.best_of_n.some((one) => one.gold) || found.policies.some((one) => one.gold);
    const card = (name, hint, node) =>
      el("section", { class: "card stack tight", "aria-label": name }, el("h2", {}, name), el("p", { class: "muted small" }, hint), node);
    replace(
      this.#body,
      gold && el("div", { class: "row" }, el("label", { class: "check" }, this.#gold, "Judge by the gold reward model, which never selects and never trains")),
      el(
        "div", { class: "grid charts" },
        card("KL and win rate", "Against one sample of the reference. Best-of-n stands at its KL's upper bound: it may lie further left. Up and left is better.", this.#winRate),
        card("KL and reward", "Bars are 95% intervals over prompts. What is not measured has no point.", this.#reward),
      ),
      cards(found.policies),
      table(found, decision.found?.sides),
      found.notes.length > 0 && el("section", { class: "card stack tight", "aria-label": "What is missing" }, el("h2", {}, "What is missing"), notes),
    );
    this.#draw();
  }

  #draw() {
    if (!this.#winRate.isConnected) return;
    const gold = this.#gold.checked;
    for (const [node, field] of [[this.#winRate, "win_rate"], [this.#reward, "reward"]]) {
      plot(node, frontierPlot(this.#found, field, gold));
    }
  }
}
