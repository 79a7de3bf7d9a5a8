// The prompts to judge on, shuffled, and the two modes that answer them.

import { ApiError, get } from "../../api.js";
import { counted, el, field } from "../../dom.js";

const EXAMPLES = ["the film was", "i watched this movie", "the acting is", "another recent documentary"];

export class Deck {
  #modes = new Map();
  #offered = "";
  #loaded = false;
  #left = []; // prompts to come, in the order of the shuffle
  #parts = {};

  constructor({ onStart }) {
    this.node = this.#build(onStart);
  }

  /** The modes to choose from; the prompts of the server's evaluation too, once. */
  offer({ modes, evaluates }) {
    const names = modes.map((mode) => mode.name).filter((name) => name !== "auto"); // it is another mode for each prompt
    if (names.join() !== this.#offered) {
      this.#offered = names.join();
      this.#modes = new Map(modes.map((mode) => [mode.name, mode]));
      fill(this.#parts.one, names, ["bon", ...names]);
      fill(this.#parts.other, names, ["vbon", ...names.filter((name) => name !== this.#parts.one.value)]);
    }
    if (!this.#loaded) this.#load(evaluates);
  }

  /** The body of the next pair; null where there is no prompt. No seed: the same one would show the same pair again. */
  next() {
    const { one, other, n, maxTokens } = this.#parts;
    const prompts = this.#prompts();
    if (prompts.length === 0) return null;
    if (this.#left.length === 0) this.#left = shuffled(prompts);
    const prompt = this.#left.pop();
    const drawn = n.value ? { n: n.valueAsNumber } : {};
    const side = (name) => (this.#modes.get(name).reranks ? { mode: name, ...drawn } : { mode: name });
    const body = { prompt, chat: this.#parts.chat.checked, sides: [side(one.value), side(other.value)] };
    if (maxTokens.value) body.max_tokens = maxTokens.valueAsNumber;
    return body;
  }

  #prompts() {
    return this.#parts.prompts.value.split("\n").filter((line) => line.trim() !== "");
  }

  /** Lines of the field: the prompts of the evaluation, or examples. */
  async #load(evaluates) {
    this.#loaded = true;
    let found = [];
    try {
      if (evaluates) found = (await get("/evaluation/prompts")).prompts;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
    }
    if (this.#parts.prompts.value) return; // somebody has written meanwhile
    const chats = found.map((item) => (item.messages?.length === 1 ? item.messages[0].content : null)).filter((text) => typeof text === "string");
    const texts = found.filter((item) => typeof item === "string");
    const used = (texts.length ? texts : chats).filter((text) => !text.includes("\n"));
    this.#parts.chat.checked = texts.length === 0 && chats.length > 0;
    this.#parts.prompts.value = (used.length ? used : EXAMPLES).join("\n");
    this.#parts.source.textContent = used.length ? "those of this server's evaluation" : "a few examples; put in your own";
    this.#count();
  }

  #count() {
    this.#left = [];
    this.#parts.count.textContent = `${counted(this.#prompts().length, "prompt")} in the deck, shuffled`;
  }

  #build(onStart) {
    const numeric = (props) => el("input", { type: "number", min: 1, step: 1, ...props });
    const parts = {
      one: el("select", {}), other: el("select", {}),
      n: numeric({ placeholder: "usual" }), maxTokens: numeric({ placeholder: "usual" }),
      prompts: el("textarea", { rows: 5, spellcheck: "false", on: { input: () => this.#count() } }),
      chat: el("input", { type: "checkbox" }),
      source: el("span", { class: "hint" }), count: el("span", {}),
    };
    this.#parts = parts;
    const submit = (event) => {
      event.preventDefault();
      onStart();
    };
    return el(
      "form", { class: "card stack", "aria-label": "The deck", on: { submit } },
      el("p", { class: "muted" }, "Two modes answer each prompt. You see both answers in random order, without their names, and say which is better; then you learn whose they were, and the next pair comes."),
      el("div", { class: "row blind-choose" }, field("One mode", parts.one), field("Another", parts.other), field("N", parts.n), field("Max tokens", parts.maxTokens), el("button", { type: "submit", class: "button primary" }, "Show me two answers")),
      el(
        "details", { class: "more" }, el("summary", {}, parts.count),
        el("div", { class: "stack" }, el("label", { class: "field" }, el("span", {}, "Prompts, one a line: ", parts.source), parts.prompts), el("label", { class: "check" }, parts.chat, "Send as a chat")),
      ),
    );
  }
}

function fill(select, names, wanted) {
  const before = select.value;
  select.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
  select.value = [before, ...wanted].find((name) => names.includes(name)) ?? names[0];
}

function shuffled(items) {
  const left = [...items];
  for (let i = left.length - 1; i > 0; i -= 1) {
    const j = Math.floor(Math.random() * (i + 1));
    [left[i], left[j]] = [left[j], left[i]];
  }
  return left;
}
