// The checkpoints: each with its decision, its evidence, and what can be decided now.

import { ApiError, get } from "../../api.js";
import { counted, duration, el, number, percent, replace } from "../../dom.js";

const STATUSES = {
  waiting: ["waiting", "warn"],
  rolling: ["being rolled out", "accent"],
  live: ["live", "good"],
  retired: ["replaced", ""],
  refused: ["refused", "bad"],
  rolled_back: ["rolled back", "bad"],
};
const WHY = {
  win_rate: "its answers beat too few of the reference's candidates",
  fall: "its answers had become worse",
  person: "a person decided so",
  failed: "it could not be loaded",
};
const OPEN = new Set(["waiting", "rolling", "live"]);
const COLUMNS = { win_rate: ["win rate", 3], reward: ["reward", 2], gold: ["gold reward", 2], kl_nats: ["KL, nats", 2], length: ["tokens", 1], truncated_share: ["cut off", 3] };

export class Checkpoints {
  #onDecide;
  #cards = new Map(); // id -> Card
  #list = el("div", { class: "stack" });

  constructor({ onDecide }) {
    this.#onDecide = onDecide;
    this.node = el("section", { class: "stack tight", "aria-labelledby": "checkpoints-title" }, el("h2", { id: "checkpoints-title" }, "Checkpoints"), this.#list);
  }

  show(rollout) {
    const { checkpoints } = rollout;
    if (!checkpoints.length) {
      const hint = ["None yet. ", el("code", {}, "vbon distil run"), " trains them when enough answers are collected."];
      replace(this.#list, el("div", { class: "empty" }, el("p", {}, hint)));
      return;
    }
    const fresh = checkpoints.filter(({ id }) => !this.#cards.has(id));
    for (const one of fresh) this.#cards.set(one.id, new Card(one, rollout, this.#onDecide));
    if (fresh.length) replace(this.#list, checkpoints.map(({ id }) => this.#cards.get(id).node));
    for (const one of checkpoints) this.#cards.get(one.id).show(one, rollout);
  }
}

/** What is known from the beginning is made once; so nobody who reads or presses something is disturbed. */
class Card {
  #onDecide;
  #badge = el("span", { class: "badge" });
  #now = el("p", { class: "small" });
  #evidence = el("div", { class: "stack tight" });
  #buttons = el("div", { class: "row" });
  #reasons = el("ul", { class: "notes small" });
  #figures = el("div", { class: "stack tight" });
  #status = null;
  #asked = false; // for the decision, which the list does not have

  constructor(one, rollout, onDecide) {
    this.#onDecide = onDecide;
    const load = () => details.open && this.#load(one, rollout);
    const details = el("details", { open: OPEN.has(one.status), on: { toggle: load } }, el("summary", {}, "Held-out figures"), this.#figures);
    const when = new Date(one.created).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    const title = `checkpoint-${one.id}`;
    this.node = el(
      "section", { class: "card stack tight", "aria-labelledby": title },
      el(
        "div", { class: "row apart" },
        el("div", { class: "row" }, el("h3", { id: title }, `Checkpoint ${one.id}`), this.#badge, el("time", { class: "muted small", datetime: one.created }, when)),
        this.#buttons,
      ),
      this.#now,
      this.#evidence,
      this.#reasons,
      details,
    );
    load();
  }

  /** Asks for the decision, once; where the server is busy, the visitor asks again by opening the figures. */
  async #load({ id, revision }, rollout) {
    if (this.#asked) return;
    this.#asked = true;
    try {
      const { decision } = await get(`/distil/checkpoints/${id}`);
      replace(this.#reasons, decision.reasons.map((reason) => el("li", {}, reason)));
      replace(this.#figures, figures({ id, decision }, rollout), el("p", { class: "muted small" }, `${cost(decision.spent)} Revision ${revision}.`));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#asked = false;
      replace(this.#figures, el("p", { class: "error small" }, `${error.message}. Close and open this to try again.`));
    }
  }

  show(one, rollout) {
    const [words, kind] = STATUSES[one.status];
    this.#badge.textContent = words;
    this.#badge.className = `badge ${kind}`;
    this.#now.textContent = standing(one, rollout);
    replace(this.#evidence, evidence(one, rollout));
    const status = `${one.status} ${one.step} ${one.approved} ${one.available}`;
    if (status === this.#status) return;
    this.#status = status;
    replace(this.#buttons, choices(one, rollout).map(([words, path, body]) => this.#button(words, path, body)));
  }

  #button(words, path, body) {
    const label = `${words.action}: checkpoint ${words.id}`;
    return el("button", { type: "button", class: "button slim", "aria-label": label, on: { click: () => this.#onDecide(words, path, body) } }, words.action);
  }
}

/** `[words, path, body]` of each decision that is possible now. */
function choices({ id, status, step, approved, was_live: wasLive, available }, { shares, n }) {
  const first = percent(shares[0]);
  const promote = [
    { id, action: "Promote", question: `Promote checkpoint ${id}? It begins with ${first} of the requests of mode auto.`, done: `Checkpoint ${id} is promoted.` },
    `/distil/checkpoints/${id}/promote`, { status, step },
  ];
  const refuse = [
    { id, action: "Refuse", question: `Refuse checkpoint ${id}?`, done: `Checkpoint ${id} is refused.` },
    `/distil/checkpoints/${id}/refuse`,
  ];
  const next = [
    { id, action: "Next step", question: `Move checkpoint ${id} to its next share of the requests, whatever its evidence says?`, done: `Checkpoint ${id} is at its next step.` },
    `/distil/checkpoints/${id}/promote`, { status, step },
  ];
  const withdraw = [
    { id, action: "Roll back", question: `Roll back checkpoint ${id}? Its requests go to the live checkpoint, or to best-of-${n}, at once.`, done: `Checkpoint ${id} is rolled back.` },
    `/distil/checkpoints/${id}/refuse`,
  ];
  const back = [
    { id, action: "Go back to it", question: `Give all requests of mode auto to checkpoint ${id}? Those that answer now are rolled back.`, done: `Checkpoint ${id} is live.` },
    "/distil/rollback", { to: id },
  ];
  if (available === false && status !== "rolling" && status !== "live") return status === "waiting" ? [refuse] : [];
  if (status === "waiting") return approved === "person" ? [refuse] : [promote, refuse];
  if (status === "rolling") return [next, withdraw];
  if (status === "live") return [];
  return wasLive ? [back, promote] : [promote];
}

function standing({ status, share, served, approved, step, why, decision }, { shares }) {
  if (status === "waiting") {
    if (approved) return "It begins as soon as no other checkpoint is being rolled out.";
    return decision.verdict === "promote" ? "It waits for a person to promote it." : "It waits for a person, because its figures do not decide.";
  }
  if (status === "rolling" || status === "live") {
    if (!served) return "Its engine is being loaded; it answers nothing yet.";
    const steps = status === "rolling" ? `, step ${step + 1} of ${shares.length}` : "";
    return `It answers ${percent(share)} of the requests of mode auto${steps}.`;
  }
  return status === "rolled_back" && why ? `It was rolled back because ${WHY[why]}.` : "";
}

function evidence({ status, evidence: found }, { threshold }) {
  if (status !== "rolling" && status !== "live") return null;
  const mean = found.win_rate === null ? "" : `, win rate ${number(found.win_rate, 3)} over the reference`;
  const words = `${counted(found.shadows, "answer")} compared${mean}; at least ${number(threshold, 3)} is required.`;
  const bars = status === "rolling"
    ? [bar("Good enough for the next step", found.good, found.needed), bar("Worse than required", found.bad, found.needed)]
    : [bar("Has become worse", found.fall, found.fall_needed), ...(found.verified === false ? [bar("Good enough with the changed models", found.good, found.needed)] : [])];
  return [el("p", { class: "small" }, words), el("div", { class: "evidence" }, bars)];
}

/** How far a test is, on the scale of its logarithm: full means that it decides. */
function bar(name, value, needed) {
  const share = value === null ? 0 : Math.min(1, Math.max(0, value / needed));
  return [
    el("span", { class: "small" }, name),
    el("progress", { class: "progress", max: "1", value: share, "aria-label": name }),
    el("span", { class: "small muted num" }, percent(share)),
  ];
}

function figures({ id, decision }, { n }) {
  const rows = [["this checkpoint", "candidate"], ["live then", "live"], [`best-of-${n}`, "bon"], ["reference", "reference"]].filter(([, key]) => decision.figures[key]);
  const columns = Object.keys(COLUMNS).filter((key) => rows.some(([, row]) => decision.figures[row][key]));
  const name = `Held-out figures of checkpoint ${id}`;
  return el(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    el(
      "table", { class: "table figures" },
      el("caption", {}, "Means over held-out prompts, with intervals."),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "policy"), columns.map((key) => el("th", { scope: "col", class: "num" }, COLUMNS[key][0])))),
      el(
        "tbody", {},
        rows.map(([words, row]) => el("tr", {}, el("th", { scope: "row" }, words), columns.map((key) => el("td", { class: "num" }, interval(decision.figures[row][key], COLUMNS[key][1]))))),
      ),
    ),
  );
}

function interval(found, digits) {
  if (!found) return "–";
  const mean = number(found.mean, digits);
  return found.low === found.high ? mean : `${mean} [${number(found.low, digits)}, ${number(found.high, digits)}]`;
}

function cost({ training_s: seconds, tokens }) {
  return `Training took ${duration(seconds * 1000)}, and ${counted(tokens, "token")} were generated for it.`;
}
