// What to measure, and how long that takes.

import { counted, duration, el, freshId, number, replace } from "../../dom.js";
import { reranks } from "../play/form.js";

const USUAL = ["ref", "bon", "vbon"];
const NUMBERS = "[0-9]+([ ,]+[0-9]+)*[ ,]*";
const RATES = "[0-9.]+([ ,]+[0-9.]+)*[ ,]*";

export class Form {
  #onStart;
  #modes = new Map(); // name -> {mode, box}
  #offered = "";
  #parts = {};
  #ready = false;
  #busy = false;
  #maxS = null;
  #extra = {}; // settings of an earlier run for which there is no field

  constructor({ onStart }) {
    this.#onStart = onStart;
    this.node = this.#build();
    this.#estimate();
  }

  /** The server's modes; what was chosen before stays chosen. */
  offer(answer) {
    const names = answer.modes.map((mode) => mode.name);
    if (this.#offered === names.join()) return;
    this.#offered = names.join();
    const usual = USUAL.filter((name) => names.includes(name));
    this.#modes = new Map(answer.modes.map((mode) => [mode.name, { mode, box: choice(mode, usual) }]));
    const plain = answer.modes.filter((mode) => !reranks(mode) || mode.name === "bon");
    const others = answer.modes.filter((mode) => !plain.includes(mode));
    const boxes = (modes) => modes.map((mode) => this.#modes.get(mode.name).box);
    replace(this.#parts.modes, el("legend", { class: "field-label" }, "Modes, measured in turns"), boxes(plain));
    replace(this.#parts.otherModes, el("legend", { class: "field-label" }, "Other ways to choose among N"), boxes(others));
    this.#parts.otherModes.hidden = others.length === 0;
    const drawing = answer.modes.filter(reranks);
    this.#parts.maxTokens.placeholder = String(answer.default_sampling.max_tokens);
    this.#parts.maxTokens.title = `Empty: ${answer.default_sampling.sources.max_tokens}`;
    this.#parts.n.value ||= String(Math.max(1, ...drawing.map((mode) => mode.default_n)));
    this.#estimate();
  }

  /** What this server allows. */
  limit({ max_s: maxS, max_in_flight: most }) {
    this.#maxS = maxS;
    this.#parts.concurrency.title = `At most ${number(most)} on this server`;
    this.#update();
  }

  /** The settings of an earlier run, to start it again; what the form has no field for is sent along. */
  fill(id, settings) {
    const p = this.#parts;
    for (const [name, { box }] of this.#modes) box.firstChild.checked = settings.modes.includes(name);
    const list = (values) => values.join(", ");
    const { e2e, ...limits } = Object.fromEntries(settings.slo.map((slo) => slo.split(":")));
    const values = {
      n: list(settings.n), concurrency: list(settings.concurrency), rate: list(settings.rate), rounds: settings.rounds,
      seconds: settings.requests ? null : settings.duration_s, maxTokens: settings.max_tokens, price: settings.price_per_hour,
      e2e, hours: settings.training_hours, scored: settings.quality_prompts,
    };
    for (const [name, value] of Object.entries(values)) p[name].value = value ?? "";
    if (!settings.prompts) p.prompts.value = ""; // they would take the place of those that it had
    p.stream.checked = settings.stream === true;
    const { baseline, temperature, seed, quality_samples, currency, requests, warmup_s, stream } = settings;
    this.#extra = {
      baseline, temperature, seed, quality_samples, currency, ...(requests && { requests }),
      ...(warmup_s !== null && { warmup_s }), ...(stream === false && { stream }),
      slo_ms: Object.fromEntries(Object.entries(limits).map(([name, limit]) => [name, Number(limit)])),
    };
    const absent = settings.modes.filter((name) => !this.#modes.has(name));
    replace(
      p.as,
      `As run ${id}: temperature ${number(temperature, 2)}, seed ${seed}, ${counted(quality_samples, "scored answer")} a prompt. `,
      settings.prompts ? "Its prompts came from a file or from this form and are not kept: put them in again. " : "",
      absent.length ? `This server does not have ${absent.join(", ")}. ` : "",
      el("button", { type: "button", class: "button quiet slim", on: { click: () => this.#forget() } }, "Usual settings"),
    );
    p.as.hidden = false;
    this.#estimate();
  }

  /** Only what the fields say from now on. */
  #forget() {
    this.#extra = {};
    this.#parts.as.hidden = true;
    this.#parts.start.focus();
  }

  setReady(ready) {
    this.#ready = ready;
    this.#update();
  }

  setBusy(busy) {
    this.#busy = busy;
    this.#update();
  }

  /** Marks the field that an error is about. */
  blame(error) {
    const field = this.#fields()[error.param?.split(".")[0]];
    if (!field) return;
    field.setAttribute("aria-invalid", "true");
    if (this.#parts.more.contains(field)) this.#parts.more.open = true;
    field.focus();
  }

  #fields() {
    const { n, concurrency, rate, rounds, seconds, maxTokens, prompts, e2e, price, hours, scored, tags } = this.#parts;
    return {
      n, concurrency, rate, rounds, prompts, tags, duration_s: seconds, max_tokens: maxTokens, slo_ms: e2e,
      price_per_hour: price, training_hours: hours, quality_prompts: scored,
    };
  }

  #update() {
    const off = this.#maxS === 0;
    this.#parts.start.disabled = !this.#ready || this.#busy || off;
    this.#parts.off.hidden = !off;
  }

  #chosen() {
    return [...this.#modes.values()].filter(({ box }) => box.firstChild.checked).map(({ mode }) => mode);
  }

  /** What the fields say, by the names of the API. */
  #body() {
    const p = this.#parts;
    const lines = p.prompts.value.split("\n").filter((line) => line.trim() !== "");
    const body = {
      ...this.#extra,
      modes: this.#chosen().map((mode) => mode.name),
      n: numbers(p.n.value),
      concurrency: numbers(p.concurrency.value),
      rate: numbers(p.rate.value),
      rounds: p.rounds.valueAsNumber,
      quality_prompts: p.scored.valueAsNumber,
      price_per_hour: p.price.valueAsNumber,
      tags: p.tags.value.split(",").map((tag) => tag.trim()).filter(Boolean),
    };
    if (body.n.length === 0) delete body.n;
    if (p.seconds.value) {
      body.duration_s = p.seconds.valueAsNumber;
      delete body.requests;
    }
    if (p.stream.checked) body.stream = true;
    if (p.maxTokens.value) body.max_tokens = p.maxTokens.valueAsNumber;
    if (lines.length) body.prompts = lines;
    if (p.e2e.value) body.slo_ms = { ...body.slo_ms, e2e: p.e2e.valueAsNumber };
    if (p.hours.value) body.training_hours = p.hours.valueAsNumber;
    return body;
  }

  #estimate() {
    const { modes, n, concurrency, rate, rounds, duration_s: given } = this.#body();
    const drawing = this.#chosen().filter(reranks).length;
    const variants = modes.length - drawing + drawing * Math.max(1, n?.length ?? 1);
    const calibrated = concurrency.length + rate.length === 0;
    const levels = calibrated ? CALIBRATED_LEVELS : concurrency.length + rate.length;
    const blocks = variants * levels * rounds;
    const shown = this.#parts.estimate;
    if (!modes.length || !Number.isFinite(blocks)) {
      shown.textContent = modes.length ? "" : "Choose at least one mode.";
      return;
    }
    const seconds = calibrated ? Math.min(CALIBRATED_S, this.#maxS ?? CALIBRATED_S) : blocks * ((given ?? BLOCK_S) + WARM_UP_S);
    const over = !calibrated && this.#maxS !== null && seconds > this.#maxS;
    const time = seconds < 60 ? `${number(seconds)} s` : duration(seconds * 1000);
    shown.textContent =
      `${counted(blocks, "block")} (${counted(variants, "variant")}, ${counted(levels, "load level")}, ` +
      `${counted(rounds, "round")}): ` +
      (calibrated ? `half a minute to choose the levels, then up to about ${time}, or longer if answers are slow` : time) +
      ", and some seconds to score" +
      (over ? `; this server allows ${number(this.#maxS)} s` : "");
    shown.classList.toggle("over", over);
  }

  #submitted(event) {
    event.preventDefault();
    const modes = this.#chosen();
    if (modes.length === 0 || this.#parts.start.disabled) return;
    for (const field of Object.values(this.#fields())) field.removeAttribute("aria-invalid");
    this.#onStart(this.#body());
  }

  #build() {
    const numeric = (props) => el("input", { type: "number", inputmode: "decimal", ...props });
    const list = (value, props) => el("input", { value, inputmode: "numeric", pattern: NUMBERS, autocomplete: "off", ...props });
    const estimateId = freshId("estimate");
    this.#parts = {
      modes: el("fieldset", { class: "choices" }, el("p", { class: "muted" }, "Modes appear when the server is ready.")),
      otherModes: el("fieldset", { class: "choices", hidden: true }),
      n: list("", { title: "One or several numbers" }),
      concurrency: list("", { placeholder: "by a calibration" }),
      rounds: numeric({ min: 1, max: 20, step: 1, value: "5", required: true }),
      seconds: numeric({ min: 0.2, max: 60, step: "any", placeholder: "long enough" }),
      maxTokens: numeric({ min: 1, step: 1 }),
      price: numeric({ min: 0.000001, step: "any", value: "1", required: true, title: "Of the machine that serves" }),
      rate: list("", { pattern: RATES, inputmode: "decimal", placeholder: "none" }),
      e2e: numeric({ min: 0.001, step: "any", placeholder: "none" }),
      hours: numeric({ min: 0, step: "any", placeholder: "from its record" }),
      scored: numeric({ min: 0, max: 128, step: 1, value: "64", required: true }),
      tags: el("input", { placeholder: "before, after", autocomplete: "off" }),
      prompts: el("textarea", { rows: 3, placeholder: "One a line; left empty: those of the evaluation, or a few that are built in", spellcheck: "false" }),
      stream: el("input", { type: "checkbox" }),
      estimate: el("p", { class: "muted small", id: estimateId, "aria-live": "polite" }),
      as: el("p", { class: "notice small", hidden: true }),
      off: el("p", { class: "notice", hidden: true }, "This server takes no load tests: limits.loadtest_max_s is 0."),
      start: el("button", { type: "submit", class: "button primary", disabled: true, "aria-describedby": estimateId }, "Start"),
    };
    const p = this.#parts;
    const field = (name, input, hint) =>
      el("label", { class: "field" }, el("span", {}, name, hint && el("span", { class: "hint" }, ` ${hint}`)), input);
    p.more = el(
      "details", { class: "more" }, el("summary", {}, "More settings"),
      el(
        "div", { class: "stack" },
        p.otherModes,
        el(
          "div", { class: "fields" },
          field("Arrivals a second", p.rate, "open loop"),
          field("E2E limit, ms", p.e2e, "for goodput"),
          field("Training hours", p.hours),
          field("Prompts scored", p.scored),
          field("Tags", p.tags),
        ),
        field("Prompts", p.prompts),
        el("label", { class: "check", title: "What TTFT, TPOT and ITL need; costs the server an event a token, which forbids a verdict beside modes that rerank" }, p.stream, "Stream modes of one sample"),
      ),
    );
    const form = el(
      "form", { class: "card stack runs-form", "aria-label": "What to measure" },
      p.modes,
      el(
        "div", { class: "fields" },
        field("N", p.n, "of bon and its like"),
        field("Requests in flight", p.concurrency),
        field("Rounds", p.rounds),
        field("Seconds a block", p.seconds),
        field("Max tokens", p.maxTokens),
        field("Price per hour", p.price),
      ),
      p.more,
      p.as, p.off,
      el("div", { class: "row apart" }, p.estimate, p.start),
    );
    form.addEventListener("submit", (event) => this.#submitted(event));
    form.addEventListener("input", () => this.#estimate());
    return form;
  }
}

// Lengths where none is given, as in service/loadtest/config.py.
const [BLOCK_S, WARM_UP_S, CALIBRATED_S, CALIBRATED_LEVELS] = [5, 1, 300, 3];

function numbers(text) {
  return text.split(/[ ,]+/).filter(Boolean).map(Number);
}

function choice(mode, chosen) {
  const box = el("input", { type: "checkbox", value: mode.name, checked: chosen.includes(mode.name) });
  return el("label", { class: "choice", title: mode.description }, box, el("span", {}, mode.name));
}
