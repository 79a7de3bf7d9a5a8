// The pair that waits for a verdict, and whose the last one was.

import { ApiError, post } from "../../api.js";
import { el, freshId, number, replace } from "../../dom.js";
import { trouble } from "../play/trouble.js";

const KEYS = { 1: "left", ArrowLeft: "left", 2: "tie", ArrowUp: "tie", ArrowDown: "tie", 3: "right", ArrowRight: "right", 0: "bad" };
const WRITES = "input, textarea, select, [contenteditable]";
const VERDICTS = [["left", "Left is better", "1"], ["tie", "Both are as good", "2"], ["right", "Right is better", "3"], ["bad", "Both are bad", "0"]];

export class Arena {
  #context;
  #ask;
  #onKept;
  #pair = null; // {id, buttons} while it waits for a verdict
  #asked = 0; // the pair that is being made; an earlier one that comes late is not shown
  #modes = new Map();
  #place = el("div", {});
  #last = el("div", { class: "last" });
  #trouble = el("div", {});

  /** `ask`: gives the body of the next pair, or null; `onKept`: called after each verdict. */
  constructor({ context, ask, onKept }) {
    this.#context = context;
    this.#ask = ask;
    this.#onKept = onKept;
    this.node = el("section", { class: "card stack blind", "aria-label": "Two answers", hidden: true }, this.#trouble, this.#place, this.#last);
  }

  offer({ modes }) {
    this.#modes = new Map(modes.map((mode) => [mode.name, mode]));
    this.node.hidden = !this.#place.firstChild && !this.#last.firstChild && !this.#trouble.firstChild;
  }

  /** 0 to 3 or an arrow is a verdict while a pair waits and nobody is writing. */
  key(event) {
    const winner = KEYS[event.key];
    const busy = event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.(WRITES);
    if (!winner || !this.#pair || busy) return;
    event.preventDefault();
    if (!event.repeat) this.#judge(winner); // a key held down would judge the next pair before anybody has read it
  }

  /** Asks for the next pair and shows it. */
  async next() {
    const body = this.#ask();
    const asked = (this.#asked += 1);
    this.#pair = null;
    this.node.hidden = false;
    replace(this.#trouble);
    if (body === null) {
      replace(this.#place);
      replace(this.#trouble, el("p", { class: "error", role: "alert" }, "The deck is empty: write prompts into it, one a line."));
      return;
    }
    replace(this.#place, el("p", { class: "muted", role: "status" }, "Both are answering…"));
    try {
      const shown = await post("/preferences/pairs", body);
      if (asked === this.#asked) this.#shown(shown);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (asked !== this.#asked) return;
      replace(this.#place);
      replace(this.#trouble, trouble(error, { retry: () => this.next() }));
    }
  }

  #shown({ pair, prompt, left, right }) {
    const button = ([winner, words, key]) =>
      el("button", { type: "button", class: "button", data: { winner }, on: { click: () => this.#judge(winner) } }, words, el("kbd", { "aria-hidden": "true" }, key));
    const question = freshId("question");
    const buttons = el("div", { class: "row verdicts" }, VERDICTS.map(button));
    const group = el(
      "div", { class: "stack", role: "group", tabindex: -1, "aria-labelledby": question },
      el("h2", { id: question }, "Which is better?"),
      el("div", { class: "grid pair" }, panel("Left", prompt, left), panel("Right", prompt, right)),
      buttons,
    );
    replace(this.#place, group);
    this.#pair = { id: pair, buttons };
    group.focus({ preventScroll: true });
    group.scrollIntoView({ block: "nearest" });
  }

  async #judge(winner) {
    const pair = this.#pair;
    this.#pair = null; // one verdict, however often a key is pressed
    for (const button of pair.buttons.children) button.disabled = true;
    try {
      const kept = await post("/preferences", { pair: pair.id, winner });
      this.#reveal(kept);
      this.#onKept();
      await this.next();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const gone = error.status === 404;
      if (!gone) {
        this.#pair = pair;
        for (const button of pair.buttons.children) button.disabled = false;
      }
      replace(this.#trouble, trouble(error, { retry: gone ? () => this.next() : () => this.#judge(winner) }));
    }
  }

  /** Whose the answers were, below the next pair. */
  #reveal(kept) {
    const words = spoken(kept);
    const side = (name, { mode, n, reward }) =>
      el("span", { class: "row whose" }, `${name}: `, el("strong", {}, mode), this.#modes.get(mode)?.reranks && el("span", { class: "muted" }, `N = ${number(n)}`), el("span", { class: "muted" }, `reward ${number(reward, 2)}`), kept.winner === name.toLowerCase() && el("span", { class: "badge good" }, "your choice"));
    replace(this.#last, el("p", {}, "The last pair. ", words), el("p", { class: "row small" }, side("Left", kept.left), side("Right", kept.right)));
    this.#context.announce(words);
  }
}

function panel(name, prompt, text) {
  const id = freshId("panel");
  const shown = text === "" ? el("em", { class: "muted" }, " ended at once, without a word") : text;
  return el(
    "section", { class: "panel", "aria-labelledby": id },
    el("h3", { id, class: "field-label" }, name),
    el("p", { class: "answer" }, el("span", { class: "muted" }, prompt.length > 160 ? `…${prompt.slice(-160)}` : prompt), shown),
  );
}

const VERDICT_WORDS = { tie: "You find both as good.", bad: "You find both bad." };

function spoken({ winner, left, right }) {
  const verdict = VERDICT_WORDS[winner] ?? `You prefer ${(winner === "left" ? left : right).mode}.`;
  if (left.reward === null || right.reward === null || winner === "bad") return verdict;
  const judged = left.reward === right.reward ? "tie" : left.reward > right.reward ? "left" : "right";
  if (judged === winner) return `${verdict} So does the reward model.`;
  const its = judged === "tie" ? "sees no difference" : `prefers ${(judged === "left" ? left : right).mode}`;
  return `${verdict} The reward model ${its}.`;
}
