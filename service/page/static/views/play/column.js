// One mode's answer while it is made, and what it cost.

import { ApiError, stream } from "../../api.js";
import { duration, el, freshId, number, replace } from "../../dom.js";
import { Candidates } from "./candidates.js";
import { chosen } from "./chosen.js";
import { reranks } from "./form.js";
import { growth } from "./growth.js";
import { trouble } from "./trouble.js";

const SHOWN_OF_PROMPT = 160;

export class Column {
  #mode;
  #body;
  #range;
  #announce;
  #again;
  #parts = {};
  #candidates = null;
  #count = 0;

  /** What the server answered; null before, and where it did not. */
  answer = null;

  /** `range`: of rewards, shared by all columns; `again`: runs this column anew. */
  constructor({ mode, body, range, announce, again }) {
    this.#mode = mode;
    this.#body = body;
    this.#range = range;
    this.#announce = announce;
    this.#again = again;
    this.#count = reranks(mode) ? (body.n ?? mode.default_n) : 1;
    this.node = this.#build();
    this.#state("waits for its turn", "");
  }

  /** Asks, and shows what comes; never throws. Stops when the signal says so. */
  async run(signal) {
    if (signal.aborted) return this.#stopped();
    this.#reset();
    this.#state("waiting", "accent");
    const began = performance.now();
    const clock = setInterval(() => (this.#parts.clock.textContent = `${number((performance.now() - began) / 1000)} s`), 1000);
    try {
      const path = `/generate?mode=${encodeURIComponent(this.#mode.name)}`;
      let answered = false;
      for await (const { event, data } of stream(path, this.#body, { signal })) {
        answered ||= event === "answer";
        this.#take(event, data);
      }
      if (!answered) throw new ApiError("the stream ended without an answer", { type: "broken" });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.type === "aborted") this.#stopped();
      else this.#failed(error);
    } finally {
      clearInterval(clock);
      this.#parts.clock.textContent = "";
    }
    return undefined;
  }

  #take(event, data) {
    if (event === "token") {
      this.#parts.text.append(data.text);
      this.#state(`${number(data.num_tokens)} tokens`, "accent");
    } else if (event === "candidate") {
      this.#range.include(data.reward);
      this.#showCandidates();
      this.#candidates.add(data);
    } else if (event === "progress") {
      this.#progress(data);
    } else if (event === "answer") {
      this.#answered(data);
    }
  }

  #progress({ total, finished, scored, best_index: best }) {
    this.#parts.progress.max = total;
    this.#parts.progress.value = scored;
    const words = scored < finished ? `${finished} of ${total} decoded` : `${scored} of ${total} scored`;
    this.#state(words, "accent");
    if (best === null) return;
    this.#candidates.markBest(best);
    this.#parts.label.textContent = `highest reward so far, candidate ${best + 1}`;
    this.#parts.text.textContent = this.#candidates.textOf(best);
  }

  #answered(answer) {
    const parts = this.#parts;
    this.answer = answer;
    this.#range.include(answer.reward);
    parts.answer.classList.remove("provisional");
    parts.label.textContent = "";
    parts.text.textContent = answer.text;
    parts.progress.hidden = true;
    if (answer.text === "") replace(parts.text, el("em", { class: "muted" }, " ended at once, without a word"));
    if (this.#candidates && answer.candidates.length > 1) {
      parts.label.textContent = `chosen: candidate ${answer.selected_index + 1} of ${answer.candidates.length}`;
      this.#showCandidates();
      this.#candidates.finish(answer.candidates, answer.selected_index);
    }
    replace(parts.facts, facts(answer, this.#times(answer), chosen(answer, this.#body.budget)));
    replace(parts.growth, growth(answer));
    this.#state("done", "good");
    const reward = answer.reward === null ? "no reward" : `reward ${number(answer.reward, 2)}`;
    this.#announce(`${this.#mode.name}: answered, ${reward}, ${duration(this.#times(answer).total)}`);
  }

  /** A mode of one sample needs no score for its answer: the time that scoring took is told apart. */
  #times({ timings_ms: ms }) {
    if (reranks(this.#mode) || this.#mode.name === "auto") return ms;
    return { ...ms, total: ms.total - ms.rerank, rerank: null, afterwards: ms.rerank };
  }

  /** Once only: putting it in its place again would take its scroll position. */
  #showCandidates() {
    const place = this.#parts.candidates;
    if (!place.firstChild) place.append(this.#candidates.node);
  }

  #stopped() {
    this.#parts.progress.hidden = true;
    this.#state("stopped", "warn");
  }

  #failed(error) {
    this.#parts.progress.hidden = true;
    this.#state("failed", "bad");
    replace(this.#parts.trouble, trouble(error, { retry: () => this.#again(this) }));
    this.#announce(`${this.#mode.name}: ${error.message}`);
  }

  #state(words, tone) {
    this.#parts.state.className = `badge ${tone}`;
    this.#parts.state.textContent = words;
    this.node.dataset.state = words;
  }

  #reset() {
    this.answer = null;
    const parts = this.#parts;
    replace(parts.trouble);
    replace(parts.facts);
    replace(parts.text);
    parts.progress.hidden = !reranks(this.#mode);
    parts.progress.removeAttribute("value");
    parts.label.textContent = "";
    parts.answer.classList.toggle("provisional", reranks(this.#mode));
    this.#candidates = reranks(this.#mode) ? new Candidates(this.#mode.name) : null;
    replace(parts.candidates);
    replace(parts.growth);
  }

  #build() {
    const id = freshId("column");
    const { prompt, messages } = this.#body;
    const asked = prompt ?? messages[0].content;
    const shown = asked.length > SHOWN_OF_PROMPT ? `…${asked.slice(-SHOWN_OF_PROMPT)}` : asked;
    const parts = {
      clock: el("span", { class: "clock muted small", title: "since this mode was asked" }),
      state: el("span", { class: "badge" }),
      progress: el("progress", { class: "progress", hidden: true, "aria-label": "candidates scored" }),
      label: el("p", { class: "label muted small" }),
      text: el("span", { class: "text" }),
      facts: el("div", { class: "facts" }),
      trouble: el("div", {}),
      candidates: el("div", {}),
      growth: el("div", {}),
    };
    parts.answer = el(
      "p", { class: "answer" }, el("span", { class: "muted" }, messages ? "" : shown), parts.text,
    );
    this.#parts = parts;
    const how = this.#mode.name === "auto" ? "chosen for each prompt" : reranks(this.#mode) ? `N = ${number(this.#count)}` : "one sample";
    return el(
      "article", { class: "card column", "aria-labelledby": id, data: { mode: this.#mode.name } },
      el(
        "header", { class: "row apart" },
        el("div", { class: "row" }, el("h2", { id, title: this.#mode.description }, this.#mode.name), el("span", { class: "muted small" }, how)),
        el("div", { class: "row" }, parts.clock, parts.state),
      ),
      parts.progress, el("div", {}, parts.answer, parts.label), parts.trouble, parts.facts, parts.candidates, parts.growth,
    );
  }
}

/** What decides between answers first: reward, time and tokens, and whether it was cut; then how it came about. */
function facts(answer, ms, why) {
  const { usage, policy, reward, sampling_differences: differences } = answer;
  const stat = (name, value, more) =>
    el("div", { title: more }, el("dt", {}, name), el("dd", {}, value, more && el("span", { class: "unseen" }, ` ${more}`)));
  return [
    el(
      "dl", { class: "stats" },
      stat("Reward", number(reward, 2)),
      stat("E2E", duration(ms.total)),
      stat("Generated", number(usage.generated_tokens), "tokens"),
      stat("Returned", number(usage.returned_tokens), "tokens"),
    ),
    reward !== null && el("span", { class: "bar", "aria-hidden": "true" }, el("span", { vars: { "--reward": String(reward) } })),
    answer.finish_reason === "length" && el("p", {}, el("span", { class: "badge warn" }, "cut at the limit of tokens")),
    why,
    timeline(ms),
    differences.length > 0 &&
      el("p", { class: "notice small differences" }, `Not as it was trained: ${differences.join("; ")}.`),
    el(
      "p", { class: "small muted policy" },
      "policy ", el("span", { title: policy.path }, policy.name), ", revision ", el("span", { class: "mono" }, policy.revision.replace(/^sha256:/, "").slice(0, 10)),
    ),
  ];
}

/** Where the time went: a bar in parts, and the same in words. */
function timeline({ queue, decode, rerank, total, afterwards = 0 }) {
  const parts = [["queue", queue], ["decode", decode], ["rerank", rerank]].filter(([, ms]) => ms !== null);
  const pieces = parts.map(([name, ms]) => el("span", { class: name, vars: { "--share": String(ms / Math.max(total, 1e-9)) } }));
  const words = parts.map(([name, ms]) => el("span", { class: name }, `${name} ${duration(ms)}`));
  return el("div", { class: "timeline" }, el("div", { class: "pieces", "aria-hidden": "true" }, pieces), el("p", { class: "row small muted" }, words, afterwards > 0 && el("span", {}, `then scored for this page in ${duration(afterwards)}`)));
}
