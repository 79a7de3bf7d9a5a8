// Distil: what is collected, which checkpoints it made, what they have saved, and who answers now.

import { ApiError, get, getChanged, post } from "../api.js";
import { el, replace } from "../dom.js";
import { trouble } from "./play/trouble.js";
import { Answering } from "./distil/answering.js";
import { Checkpoints } from "./distil/checkpoints.js";
import { Confirmation } from "./distil/confirmation.js";
import { Course } from "./distil/course.js";
import { History } from "./distil/history.js";
import { Progress } from "./distil/progress.js";
import { tiles } from "./distil/tiles.js";

export const title = "Distil";

const LOOK_MS = 3000;
const COUNT_EVERY = 10; // looks; counting what is collected reads files
const AUTO = "auto";

let view = null;

/** Made once; it asks only while it is shown. */
export function mount(root, context) {
  view ??= new Distil(context);
  root.append(...view.parts);
  view.shown();
}

export function unmount() {
  view.left();
}

class Distil {
  #context;
  #here = false;
  #timer = null;
  #looks = 0;
  #latest = 0; // number of the newest look; older ones that are still on their way are left out
  #collected = null;
  #rollout = null; // with its ETag
  #told = ""; // the rollout that is on the page, as text
  #trouble = el("div", { class: "distil-trouble" });
  #tiles = el("div", {});
  #progress = new Progress();
  #body = el("div", { class: "stack" });
  #confirmation = new Confirmation();
  #answering = new Answering({ onBestOfN: (rollout) => this.#decide(wordsOfBestOfN(rollout), "/distil/rollback", { to: null }) });
  #course = new Course();
  #checkpoints = new Checkpoints({ onDecide: (...decision) => this.#decide(...decision) });
  #history = new History();

  constructor(context) {
    this.#context = context;
    this.parts = [el("h1", { class: "unseen" }, title), this.#trouble, this.#tiles, this.#progress.node, this.#body, this.#confirmation.node];
    replace(this.#body, empty("Waiting for the server."));
    context.server.addEventListener("change", () => this.#here && this.#look());
  }

  shown() {
    this.#here = true;
    this.#looks = 0;
    this.#look();
    this.#course.shown();
  }

  left() {
    this.#here = false;
    clearTimeout(this.#timer);
  }

  /** One look after another, as long as somebody looks. */
  async #look() {
    clearTimeout(this.#timer);
    const { server } = this.#context;
    if (!server.answers) return;
    this.#latest += 1;
    const mine = this.#latest;
    if (!server.modes.collects) {
      replace(this.#tiles);
      replace(this.#body, empty("This server keeps no answers for training. Start it with ", el("code", {}, "--distil.dir DIR"), "."));
      return;
    }
    try {
      const rolls = server.modes.modes.some((mode) => mode.name === AUTO);
      const [collected, rollout, progress] = await Promise.all([
        this.#looks % COUNT_EVERY === 0 ? get("/distil") : this.#collected,
        rolls ? getChanged("/distil/checkpoints", this.#rollout) : null,
        get("/distil/progress"),
      ]);
      if (mine !== this.#latest) return;
      this.#collected = collected;
      this.#rollout = rollout;
      this.#progress.show(progress);
      this.#show(rollout && rollout.body);
      this.#looks += 1;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (mine !== this.#latest) return;
      if (error.status === 403) return this.#refused(error);
      if (this.#looks === 0) replace(this.#body, trouble(error, { retry: () => this.#look() }));
      // A busy server may miss a look; the shell says so when it is gone.
    }
    if (this.#here) this.#timer = setTimeout(() => this.#look(), LOOK_MS);
  }

  #refused(error) {
    replace(this.#tiles);
    const again = el("button", { type: "button", class: "button slim", on: { click: () => this.#look() } }, "Look again");
    replace(this.#body, empty("Only admins may see this: ", error.message, "."));
    this.#body.firstChild.append(el("p", {}, again));
  }

  #show(rollout) {
    const told = JSON.stringify([this.#collected, rollout]);
    if (told === this.#told && this.#body.isConnected && this.#looks > 0) return;
    this.#told = told;
    replace(this.#tiles, tiles(this.#collected, rollout));
    if (rollout === null) {
      const setting = el("code", {}, "--distil.policy live");
      replace(this.#body, empty("This server collects, but serves no checkpoints. Start it with ", setting, ", and run ", el("code", {}, "vbon distil run"), "."));
      return;
    }
    this.#answering.show(rollout);
    this.#course.show(rollout);
    this.#checkpoints.show(rollout);
    this.#history.show(rollout);
    const parts = [this.#answering.node, this.#course.node, this.#checkpoints.node, this.#history.node];
    if (this.#body.firstChild !== parts[0]) replace(this.#body, parts);
    this.#course.shown();
  }

  /** Asks the visitor, then the server. `words`: `{question, action, done}`. */
  async #decide(words, path, body) {
    if (!(await this.#confirmation.ask(words))) return;
    try {
      await post(path, body);
      replace(this.#trouble);
      this.#context.announce(words.done);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(this.#trouble, trouble(error));
    }
    this.#look();
  }
}

function wordsOfBestOfN({ n }) {
  return {
    question: `Answer all requests of mode auto by best-of-${n}? The checkpoints that answer now are rolled back at once.`,
    action: `Back to best-of-${n}`,
    done: `Best-of-${n} answers all requests of mode auto.`,
  };
}

function empty(...words) {
  return el("div", { class: "empty" }, el("p", {}, words));
}
