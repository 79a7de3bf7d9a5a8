// Blind preference: two unlabelled answers to the prompt above, a verdict, and whose they were.

import { ApiError, get, post } from "../../api.js";
import { el, field, freshId, number, replace } from "../../dom.js";
import { reranks } from "./form.js";
import { standings } from "./standings.js";
import { trouble } from "./trouble.js";

const KEYS = { 1: "left", ArrowLeft: "left", 2: "tie", ArrowUp: "tie", ArrowDown: "tie", 3: "right", ArrowRight: "right" };
const WRITES = "input, textarea, select, [contenteditable]";

export class Preference {
  #context;
  #form;
  #modes = new Map();
  #pair = null; // {id, prompt, panels} while it waits for a verdict
  #parts = {};

  constructor(context, form) {
    this.#context = context;
    this.#form = form;
    this.node = this.#build();
  }

  /** The modes to choose from; asks for the standings too, where verdicts are kept. */
  offer({ modes, records }) {
    const names = modes.map((mode) => mode.name);
    if (names.join() !== [...this.#modes.keys()].join()) {
      this.#modes = new Map(modes.map((mode) => [mode.name, mode]));
      this.#fill(this.#parts.one, names, ["bon", ...names]);
      const other = names.filter((name) => name !== this.#parts.one.value);
      this.#fill(this.#parts.other, names, ["vbon", ...other]);
    }
    this.#parts.choose.hidden = !records;
    if (records) this.#showStandings();
    else replace(this.#parts.standings, keepsNone());
  }

  /** 1, 2, 3 or an arrow is a verdict while a pair waits and nobody is writing. */
  key(event) {
    const winner = KEYS[event.key];
    const busy = event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.(WRITES);
    if (!winner || !this.#pair || busy) return;
    event.preventDefault();
    this.#judge(winner);
  }

  async #showPair() {
    const { show, arena, trouble: place, one, other } = this.#parts;
    if (this.#form.complain()) return;
    replace(place);
    show.disabled = true;
    this.#pair = null;
    replace(arena, el("p", { class: "muted", role: "status" }, "Both are answering…"));
    try {
      const shown = await post("/preferences/pairs", this.#request(one.value, other.value));
      this.#shown(shown);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(arena);
      replace(place, trouble(error, { retry: () => this.#showPair() }));
    } finally {
      show.disabled = false;
    }
  }

  /** No seed: the same one would show the same pair again. */
  #request(one, other) {
    const { prompt, chat, n, max_tokens, temperature } = this.#form.values();
    const side = (mode) => (n !== undefined && reranks(this.#modes.get(mode)) ? { mode, n } : { mode });
    return { prompt, chat, sides: [side(one), side(other)], max_tokens, temperature };
  }

  #shown({ pair, prompt, left, right }) {
    const panels = { left: panel("Left", prompt, left), right: panel("Right", prompt, right) };
    const verdict = (winner, words, key) =>
      el("button", { type: "button", class: "button", data: { winner }, on: { click: () => this.#judge(winner) } }, words, el("kbd", { "aria-hidden": "true" }, key));
    const question = freshId("question");
    const buttons = el("div", { class: "row verdicts" }, verdict("left", "Left is better", "1"), verdict("tie", "Tie", "2"), verdict("right", "Right is better", "3"));
    const group = el(
      "div", { class: "stack", role: "group", tabindex: -1, "aria-labelledby": question },
      el("h3", { id: question }, "Which is better?"),
      el("div", { class: "grid pair" }, panels.left.node, panels.right.node),
      buttons,
    );
    replace(this.#parts.arena, group);
    this.#pair = { id: pair, panels, buttons };
    group.focus({ preventScroll: true });
    group.scrollIntoView({ block: "nearest" });
  }

  async #judge(winner) {
    const { id, panels, buttons } = this.#pair;
    const pair = this.#pair;
    this.#pair = null; // one verdict, however often a key is pressed
    for (const button of buttons.children) button.disabled = true;
    try {
      const kept = await post("/preferences", { pair: id, winner });
      this.#reveal(kept, panels, buttons);
      await this.#showStandings();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      const gone = error.status === 404;
      if (!gone) {
        this.#pair = pair;
        for (const button of buttons.children) button.disabled = false;
      }
      replace(this.#parts.trouble, trouble(error, { retry: gone ? null : () => this.#judge(winner) }));
    }
  }

  #reveal(kept, panels, buttons) {
    replace(this.#parts.trouble);
    for (const side of ["left", "right"]) panels[side].reveal(kept[side], kept.winner === side);
    const next = el("button", { type: "button", class: "button", on: { click: () => this.#showPair() } }, "Another pair");
    const words = spoken(kept, (mode) => this.#modes.get(mode));
    buttons.replaceWith(el("div", { class: "row apart" }, el("p", {}, words), next));
    next.focus({ preventScroll: true });
    this.#context.announce(words);
  }

  async #showStandings() {
    const place = this.#parts.standings;
    try {
      replace(place, standings((await get("/preferences")).standings));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(place, trouble(error, { retry: () => this.#showStandings() }));
    }
  }

  #fill(select, names, wanted) {
    replace(select, names.map((name) => el("option", { value: name }, name)));
    select.value = wanted.find((name) => names.includes(name)) ?? names[0];
  }

  #build() {
    const title = freshId("blind");
    const parts = {
      one: el("select", {}),
      other: el("select", {}),
      show: el("button", { type: "button", class: "button", on: { click: () => this.#showPair() } }, "Show me two answers"),
      arena: el("div", {}),
      trouble: el("div", {}),
      standings: el("div", {}),
    };
    this.#parts = parts;
    parts.choose = el("div", { class: "row blind-choose" }, field("One mode", parts.one), field("Another", parts.other), parts.show);
    return el(
      "section", { class: "card stack blind", "aria-labelledby": title },
      el(
        "div", {},
        el("h2", { id: title }, "Blind preference"),
        el("p", { class: "muted" }, "Two modes answer the prompt above; you see both answers in random order, without their names, and say which is better."),
      ),
      parts.choose, parts.trouble, parts.arena, parts.standings,
    );
  }
}

function keepsNone() {
  const words = "This service keeps no verdicts, so there is nothing to judge. Start it with --store FILE to change that.";
  return el("div", { class: "empty" }, el("p", {}, words));
}

function panel(name, prompt, text) {
  const id = freshId("panel");
  const whose = el("p", { class: "row small whose" });
  const shown = text === "" ? el("em", { class: "muted" }, " ended at once, without a word") : text;
  const node = el(
    "section", { class: "panel", "aria-labelledby": id },
    el("h4", { id, class: "field-label" }, name),
    el("p", { class: "answer" }, el("span", { class: "muted" }, prompt.length > 160 ? `…${prompt.slice(-160)}` : prompt), shown),
    whose,
  );
  const reveal = ({ mode, n, reward }, won) => {
    node.classList.toggle("won", won);
    replace(whose, el("strong", {}, mode), n > 1 && el("span", { class: "muted" }, `N = ${number(n)}`), el("span", { class: "muted" }, `reward ${number(reward, 2)}`), won && el("span", { class: "badge good" }, "your choice"));
  };
  return { node, reveal };
}

function spoken({ winner, left, right }) {
  const verdict = winner === "tie" ? "You call it a tie." : `You prefer ${(winner === "left" ? left : right).mode}.`;
  if (left.reward === null || right.reward === null) return verdict;
  const judged = left.reward === right.reward ? "tie" : left.reward > right.reward ? "left" : "right";
  if (judged === winner) return `${verdict} So does the reward model.`;
  const its = judged === "tie" ? "sees no difference" : `prefers ${(judged === "left" ? left : right).mode}`;
  return `${verdict} The reward model ${its}.`;
}
