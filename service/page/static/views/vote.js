// Vote: a deck of prompts, each answered by two modes whose names are hidden until people have said which is better.

import { ApiError, get } from "../api.js";
import { el, replace } from "../dom.js";
import { trouble } from "./play/trouble.js";
import { Arena } from "./vote/arena.js";
import { Deck } from "./vote/deck.js";
import { standings } from "./vote/standings.js";

export const title = "Vote";

let view = null;

/** The view is made once, so a pair waits for its verdict while another view is looked at. */
export function mount(root, context) {
  view ??= new Vote(context);
  root.append(...view.parts);
  view.shown();
}

export function unmount() {
  view.left();
}

class Vote {
  #context;
  #deck;
  #arena;
  #standings = el("section", { class: "card stack tight", "aria-label": "Win rates so far" });
  #none = el("div", { class: "empty", hidden: true }, el("p", {}, "This service keeps no verdicts, so there is nothing to judge. Start it with --store FILE to change that."));
  #here = false;
  #onKey = (event) => !document.querySelector("dialog[open]") && this.#arena.key(event);

  constructor(context) {
    this.#context = context;
    this.#deck = new Deck({ onStart: () => this.#arena.next() });
    this.#arena = new Arena({ context, ask: () => this.#deck.next(), onKept: () => this.#showStandings() });
    this.parts = [el("h1", { class: "unseen" }, title), this.#none, this.#deck.node, this.#arena.node, this.#standings];
    context.server.addEventListener("change", () => this.#serverChanged());
  }

  shown() {
    this.#here = true;
    document.addEventListener("keydown", this.#onKey);
    this.#serverChanged();
  }

  left() {
    this.#here = false;
    document.removeEventListener("keydown", this.#onKey);
  }

  #serverChanged() {
    const { answers, modes } = this.#context.server;
    if (!answers || !this.#here) return;
    const kept = modes.records;
    this.#none.hidden = kept;
    for (const node of [this.#deck.node, this.#arena.node, this.#standings]) node.hidden = !kept;
    if (!kept) return;
    this.#deck.offer(modes);
    this.#arena.offer(modes);
    this.#showStandings();
  }

  async #showStandings() {
    try {
      replace(this.#standings, el("h2", {}, "So far"), standings((await get("/preferences")).standings));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(this.#standings, trouble(error, { retry: () => this.#showStandings() }));
    }
  }
}
