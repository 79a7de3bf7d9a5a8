// What to ask: the prompt, the modes, and how to draw.

import { el, field, replace } from "../../dom.js";
import { Budget } from "./budget.js";
import { code } from "./code.js";

const EXAMPLES = ["the film was", "i watched this movie", "the acting is", "another recent documentary"];
const USUAL = ["ref", "bon", "vbon"];
const FEW = 6;
const ALWAYS = ["bon", "auto"]; // shown even where many modes draw candidates

/** Whether a mode draws several candidates and chooses. */
export function reranks(mode) {
  return mode.reranks;
}

export class Form {
  #onAsk;
  #onStop;
  #modes = new Map(); // name -> {mode, box}
  #offered = "";
  #parts = {};
  #ready = false;
  #budget = new Budget({ onChoose: () => this.#choose("auto") });

  constructor({ onAsk, onStop }) {
    this.#onAsk = onAsk;
    this.#onStop = onStop;
    this.node = this.#build();
  }

  /** Shows the server's modes; what was chosen before stays chosen. */
  offer(answer) {
    const names = answer.modes.map((mode) => mode.name);
    this.#budget.offer(names.includes("auto") ? answer.budgets : []);
    if (this.#offered === names.join()) return;
    const before = this.#offered ? this.#chosen().map((mode) => mode.name) : null;
    this.#offered = names.join();
    const usual = USUAL.filter((name) => names.includes(name));
    const chosen = new Set(before ?? (usual.length ? usual : [answer.default_mode]));
    this.#modes = new Map(answer.modes.map((mode) => [mode.name, { mode, box: choice(mode, chosen) }]));
    const plain = answer.modes.filter((mode) => !reranks(mode) || ALWAYS.includes(mode.name));
    const others = answer.modes.filter((mode) => !plain.includes(mode));
    const shown = answer.modes.length <= FEW ? answer.modes : plain;
    const boxes = (modes) => modes.map((mode) => this.#modes.get(mode.name).box);
    replace(this.#parts.modes, el("legend", { class: "field-label" }, "Ways to answer"), boxes(shown));
    this.#parts.others.hidden = shown.length === answer.modes.length;
    replace(this.#parts.otherModes, el("legend", { class: "unseen" }, "Other ways to choose"), boxes(others));
    const { n, maxTokens, temperature } = this.#parts;
    n.placeholder = String(Math.max(...answer.modes.map((mode) => mode.default_n)));
    n.max = String(answer.limits.max_n);
    maxTokens.max = String(answer.limits.max_tokens);
    maxTokens.placeholder = String(answer.default_sampling.max_tokens);
    temperature.placeholder = String(answer.default_sampling.temperature);
    maxTokens.title = `Empty: ${answer.default_sampling.sources.max_tokens}`;
    temperature.title = `Empty: ${answer.default_sampling.sources.temperature}`;
  }

  setReady(ready) {
    this.#ready = ready;
    this.#parts.ask.disabled = !ready;
  }

  setRunning(running) {
    this.#parts.stop.hidden = !running;
    this.node.toggleAttribute("data-running", running);
  }

  submit() {
    if (this.#ready) this.node.requestSubmit();
  }

  /** What the fields say, by the names of the API; fields left empty are the server's to fill. */
  values() {
    const { prompt, n, maxTokens, temperature, seed, chat } = this.#parts;
    const given = { n, max_tokens: maxTokens, temperature, seed };
    const numbers = Object.entries(given).filter(([, input]) => input.value !== "");
    return {
      prompt: prompt.value,
      chat: chat.checked,
      ...Object.fromEntries(numbers.map(([name, input]) => [name, input.valueAsNumber])),
    };
  }

  /** Says what is wrong beside the button, and puts the cursor there; nothing wrong: false. */
  complain() {
    const { prompt } = this.#parts;
    prompt.removeAttribute("aria-invalid");
    if (prompt.value === "") {
      prompt.setAttribute("aria-invalid", "true");
      prompt.focus();
      return this.#say("Write a prompt first, or take one of the examples.");
    }
    if (!this.node.reportValidity()) return this.#say("One of the numbers cannot be used.");
    return this.#say("");
  }

  #say(text) {
    this.#parts.trouble.textContent = text;
    this.#parts.trouble.hidden = text === "";
    return text !== "";
  }

  #choose(name) {
    const box = this.#modes.get(name)?.box;
    if (box) box.firstChild.checked = true;
  }

  #chosen() {
    return [...this.#modes.values()].filter(({ box }) => box.firstChild.checked).map(({ mode }) => mode);
  }

  #submitted(event) {
    event.preventDefault();
    if (this.complain()) return;
    const modes = this.#chosen();
    if (modes.length === 0) {
      this.#say("Choose at least one way to answer.");
      return;
    }
    const wrong = this.#budget.trouble(modes.map((mode) => mode.name));
    if (this.#say(wrong)) return;
    const body = { ...this.#asked(), stream: true, return_candidates: true };
    this.#onAsk({ body, budget: this.#budget.value, modes, oneAtATime: this.#parts.oneAtATime.checked });
  }

  /** The request without what only this page wants of it. */
  #asked() {
    const { prompt, chat, ...sampling } = this.values();
    return { ...(chat ? { messages: [{ role: "user", content: prompt }] } : { prompt }), ...sampling };
  }

  #build() {
    const numeric = (props) => el("input", { type: "number", inputmode: "decimal", ...props });
    const parts = {
      prompt: el("textarea", {
        rows: 2, placeholder: "A text to go on from", spellcheck: "false",
      }),
      modes: el("fieldset", { class: "choices" }, el("p", { class: "muted" }, "Modes appear when the server is ready.")),
      otherModes: el("fieldset", { class: "choices" }),
      n: numeric({ min: 1, step: 1 }),
      maxTokens: numeric({ min: 1, step: 1 }),
      temperature: numeric({ min: 0, max: 10, step: "any" }),
      seed: numeric({ min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, placeholder: "random" }),
      chat: el("input", { type: "checkbox" }),
      oneAtATime: el("input", { type: "checkbox" }),
      ask: el("button", { type: "submit", class: "button primary", disabled: true }, "Ask"),
      stop: el("button", { type: "button", class: "button", hidden: true, on: { click: () => this.#onStop() } }, "Stop"),
      trouble: el("p", { class: "error", role: "alert", hidden: true }),
    };
    parts.others = el(
      "details", { class: "others", hidden: true }, el("summary", {}, "Other ways to choose among N"), parts.otherModes,
    );
    this.#parts = parts;
    const check = (words, input, hint) => el("label", { class: "check", title: hint }, input, words);
    const asCode = code(() => ({ body: this.#asked(), budget: this.#budget.value, modes: this.#chosen().map((mode) => mode.name) }));
    const form = el(
      "form", { class: "card stack play-form", "aria-label": "What to ask" },
      el("div", { class: "stack tight" }, field("Prompt", parts.prompt), this.#examples()),
      el("div", { class: "stack tight" }, parts.modes, parts.others),
      el(
        "div", { class: "fields" },
        field("N (candidates)", parts.n),
        field("Max tokens", parts.maxTokens),
        field("Temperature", parts.temperature),
        field("Seed", parts.seed),
        this.#budget.fields,
      ),
      this.#budget.hint,
      parts.trouble,
      el(
        "div", { class: "row apart" },
        el(
          "div", { class: "row" },
          check("As a chat message", parts.chat, "For policies with a chat template"),
          check("One after another", parts.oneAtATime, "Modes do not share the machine, so their times can be compared"),
        ),
        el("div", { class: "row" }, parts.stop, parts.ask),
      ),
      asCode.node,
    );
    form.addEventListener("submit", (event) => this.#submitted(event));
    form.addEventListener("input", asCode.draw);
    return form;
  }

  #examples() {
    const take = (text) => {
      this.#parts.prompt.value = text;
      this.#parts.prompt.dispatchEvent(new Event("input", { bubbles: true })); // as if it had been typed
      this.#parts.prompt.focus();
    };
    const buttons = EXAMPLES.map((text) =>
      el("button", { type: "button", class: "button quiet slim", on: { click: () => take(text) } }, text),
    );
    return el("div", { class: "row examples", role: "group", "aria-label": "Example prompts" }, buttons);
  }
}

function choice(mode, chosen) {
  const box = el("input", { type: "checkbox", value: mode.name, checked: chosen.has(mode.name) });
  return el("label", { class: "choice", title: mode.description }, box, el("span", {}, mode.name));
}
