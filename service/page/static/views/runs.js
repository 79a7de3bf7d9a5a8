// Runs: a bounded load test of this server, its curves as they grow, and the runs that are kept.

import { ApiError, get, post, request } from "../api.js";
import { decision } from "../decision.js";
import { el, replace } from "../dom.js";
import { trouble } from "./play/trouble.js";
import { Figures } from "./runs/figures.js";
import { Form } from "./runs/form.js";
import { Kept } from "./runs/kept.js";
import { Progress } from "./runs/progress.js";

export const title = "Runs";

const LOOK_MS = 1000;
const ACTIVE = ["running", "stopping"];

let view = null;

/** The view is made once; while it is away nothing is asked for, and the load test goes on. */
export function mount(root, context) {
  view ??= new Runs(context);
  root.append(...view.parts);
  view.shown();
}

export function unmount() {
  view.left();
}

class Runs {
  #context;
  #form;
  #progress;
  #figures;
  #kept;
  #trouble = el("div", { class: "runs-trouble" });
  #here = false;
  #timer = null;
  #status = null; // of the run that is followed
  #done = -1; // blocks in the figures shown
  #shown = null; // id of the finished run whose figures are on the page
  #current = null; // id of the run that the server has or had last

  constructor(context) {
    this.#context = context;
    this.#form = new Form({ onStart: (body) => this.#start(body) });
    this.#progress = new Progress({ onStop: () => this.#stop() });
    this.#figures = new Figures();
    this.#kept = new Kept({
      show: (id) => this.#show(id),
      again: (id) => this.#again(id),
      compare: (b, a) => this.#compare(b, a),
      label: (id, labels) => this.#changed(() => request("PATCH", `/loadtests/${id}`, labels), "The run has a new name."),
      remove: (id) => this.#remove(id),
    });
    this.parts = [
      el("h1", { class: "unseen" }, title),
      this.#form.node,
      this.#trouble,
      this.#progress.node,
      this.#figures.node,
      this.#kept.node,
    ];
    context.server.addEventListener("change", () => this.#serverChanged());
  }

  shown() {
    this.#here = true;
    this.#serverChanged();
    this.#figures.shown();
  }

  left() {
    this.#here = false;
    clearTimeout(this.#timer);
  }

  #serverChanged() {
    const { state, modes } = this.#context.server;
    if (modes) this.#form.offer(modes);
    this.#form.setReady(state === "ready");
    if (this.#here && state === "ready") this.#arrive();
  }

  /** What the server is doing, which may have been started from another page. */
  async #arrive() {
    const runs = await this.#told(() => get("/loadtests"));
    if (!runs) return;
    this.#form.limit(runs);
    this.#kept.show(runs);
    if (runs.current && (ACTIVE.includes(runs.current.state) || this.#current === null)) {
      this.#follow(runs.current);
    } else if (this.#current === null) {
      this.#figures.nothing();
    }
  }

  async #start(body) {
    this.#form.setBusy(true);
    const status = await this.#told(() => post("/loadtests", body), (error) => this.#form.blame(error));
    if (!status) {
      this.#form.setBusy(false);
      return;
    }
    this.#context.announce("The load test has started.");
    this.#figures.waiting();
    this.#follow(status);
    this.#progress.node.scrollIntoView({ block: "nearest" });
  }

  async #stop() {
    const status = await this.#told(() => request("DELETE", `/loadtests/${this.#current}`));
    if (status) this.#see(status);
  }

  #follow(status) {
    this.#current = status.id;
    this.#done = -1;
    this.#see(status);
    clearTimeout(this.#timer);
    this.#look();
  }

  /** One look after another, as long as it runs and somebody looks. */
  async #look() {
    const id = this.#current;
    let status;
    try {
      status = await get(`/loadtests/${id}`);
      if (status.result && (status.blocks_done !== this.#done || !ACTIVE.includes(status.state))) {
        const result = await get(`/loadtests/${id}/result`);
        if (id !== this.#current) return;
        this.#done = status.blocks_done;
        const growing = ACTIVE.includes(status.state);
        this.#figures.show(result, { growing });
        this.#shown = growing ? null : id;
        this.#kept.showing(this.#shown);
      } else if (!ACTIVE.includes(status.state)) {
        this.#figures.nothing();
      }
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      status = this.#status; // a busy server may miss a look; the shell says so when it is gone
    }
    if (id !== this.#current) return;
    this.#see(status);
    if (this.#here && ACTIVE.includes(status.state)) this.#timer = setTimeout(() => this.#look(), LOOK_MS);
  }

  #see(status) {
    const ended = this.#status?.id === status.id && ACTIVE.includes(this.#status.state) && !ACTIVE.includes(status.state);
    this.#status = status;
    this.#progress.show(status);
    this.#form.setBusy(ACTIVE.includes(status.state));
    if (ended) {
      this.#context.announce(`The load test is ${status.state}.`);
      decision.refresh();
      this.#arrive();
    }
  }

  async #show(id) {
    const result = await this.#told(() => get(`/loadtests/${id}/result`));
    if (!result) return;
    if (this.#status === null || !ACTIVE.includes(this.#status.state)) this.#progress.hide();
    this.#figures.show(result, { growing: false });
    this.#shown = id;
    this.#kept.showing(id);
    this.#figures.node.scrollIntoView({ block: "start" });
    this.#context.announce(`Run ${id} is shown.`);
  }

  async #compare(b, a) {
    const found = await this.#told(() => get(`/loadtests/${b}/comparison?against=${a}`));
    if (!found) return;
    this.#kept.compared(found);
    this.#context.announce(found.statement);
  }

  /** A run's settings in the form, from which it can be started again. */
  async #again(id) {
    const result = await this.#told(() => get(`/loadtests/${id}/result`));
    if (!result) return;
    this.#form.fill(id, result.settings);
    this.#form.node.scrollIntoView({ block: "start" });
    this.#context.announce(`The form has the settings of run ${id}.`);
  }

  async #remove(id) {
    const done = await this.#changed(() => request("DELETE", `/loadtests/${id}/result`), "The run is deleted.");
    if (done && this.#shown === id) {
      this.#shown = null;
      this.#figures.nothing();
    }
    if (done && this.#current === id) this.#progress.hide();
    if (done) decision.refresh();
    return done;
  }

  /** Whether a change of the kept runs worked; the list shows it then. */
  async #changed(ask, words) {
    const answer = await this.#told(async () => (await ask()) ?? true);
    if (!answer) return false;
    const runs = await this.#told(() => get("/loadtests"));
    if (runs) this.#kept.show(runs);
    this.#context.announce(words);
    return true;
  }

  /** The answer, or nothing once the error is on the page. */
  async #told(ask, blame = () => {}) {
    try {
      const answer = await ask();
      replace(this.#trouble);
      return answer;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      blame(error);
      replace(this.#trouble, trouble(error));
      return null;
    }
  }
}
