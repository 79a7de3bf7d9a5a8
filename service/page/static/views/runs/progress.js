// Where a load test stands.

import { counted, duration, el, number } from "../../dom.js";
import { Live } from "./live.js";

const STATES = {
  running: ["running", "accent"],
  stopping: ["stopping", "warn"],
  finished: ["finished", "good"],
  stopped: ["stopped early", "warn"],
  failed: ["failed", "bad"],
};

export class Progress {
  #badge = el("span", { class: "badge" });
  #name = el("span", { class: "mono muted" });
  #bar = el("progress", { class: "progress", "aria-label": "Blocks measured" });
  #now = el("p", { class: "muted small" });
  #message = el("p", { class: "error", role: "alert" });
  #live = new Live();
  #stop;

  constructor({ onStop }) {
    this.#stop = el("button", { type: "button", class: "button slim", on: { click: onStop } }, "Stop and keep what is measured");
    this.node = el(
      "section", { class: "card stack tight runs-progress", "aria-label": "The load test", hidden: true },
      el("div", { class: "row apart" }, el("div", { class: "row" }, this.#badge, this.#name), this.#stop),
      this.#bar, this.#now, this.#live.node, this.#message,
    );
  }

  hide() {
    this.node.hidden = true;
  }

  show(status) {
    const [words, kind] = STATES[status.state];
    this.node.hidden = false;
    this.#badge.textContent = words;
    this.#badge.className = `badge ${kind}`;
    this.#name.textContent = status.id;
    const active = status.state === "running" || status.state === "stopping";
    this.#stop.hidden = !active;
    this.#stop.disabled = status.state === "stopping";
    this.#bar.hidden = !active;
    if (status.blocks_planned) {
      this.#bar.max = status.blocks_planned;
      this.#bar.value = status.blocks_done;
    } else {
      this.#bar.removeAttribute("value");
    }
    this.#now.textContent = said(status);
    this.#live.show(status);
    this.#message.textContent = status.message ?? "";
    this.#message.hidden = !status.message;
    this.#message.className = status.state === "failed" ? "error" : "notice";
  }
}

function said({ state, blocks_planned: planned, blocks_done: done, now, now_s: seconds, left_s: left }) {
  if (planned === null && state !== "running") return "Nothing was measured.";
  if (planned === null) return now ? `Before the blocks: ${now}` : "The client is starting.";
  const blocks = `${number(done)} of ${counted(planned, "block")}`;
  if (state === "stopping") return `${blocks}; the report is being written.`;
  if (state !== "running" || !now) return blocks;
  if (done === planned && !now.startsWith("scoring")) return `${blocks}; the report is being written.`;
  // Rounds are counted from 0 in the journal, and from 1 by people.
  const what = now.replace(/round (\d+)$/, (_, round) => `round ${Number(round) + 1}`);
  const rest = left ? `, about ${duration(left * 1000)} left` : "";
  return `${blocks}${rest}; now ${what}${seconds ? `, ${duration(seconds * 1000)}` : ""}`;
}
