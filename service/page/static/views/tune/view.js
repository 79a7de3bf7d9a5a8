// Tune: the trials of a run of vbon tune as they come, the best of them, and what to do with it.

import { ApiError, get, post, request } from "../../api.js";
import { comparison } from "../../comparison.js";
import { decision } from "../../decision.js";
import { el, freshId, replace } from "../../dom.js";
import { Confirmation } from "../distil/confirmation.js";
import { trouble } from "../play/trouble.js";
import { Checks } from "./checks.js";
import { Command } from "./command.js";
import { Outcome } from "./outcome.js";
import { Pareto } from "./pareto.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";
import { Trials } from "./trials.js";
import { ENDED } from "./words.js";

const LOOK_MS = 1000;
const LOOK_SELDOM_MS = 10_000; // where nothing runs

/** Made once; it asks only while it is shown. */
export class Tune {
  #context;
  #here = false;
  #timer = null;
  #latest = 0; // number of the newest look; older ones that are still on their way are left out
  #runs = [];
  #run = null; // the run on the page, as the server told it
  #readAt = 0; // when all of it was asked for last
  #told = "";
  #body = el("div", { class: "stack" });
  #trouble = el("div", { class: "tune-trouble" });
  #choice = el("div", {});
  #confirmation = new Confirmation();
  #status = new Status();
  #outcome = new Outcome({ onApply: (settings) => this.#apply(settings) });
  #pareto = new Pareto();
  #trials = new Trials();
  #checks = new Checks();
  #settings = new Settings({ onRemove: () => this.#remove() });
  #command = new Command();

  constructor(context) {
    this.#context = context;
    this.parts = [this.#trouble, this.#body, this.#confirmation.node];
    replace(this.#body, empty("Waiting for the server."));
    context.server.addEventListener("change", () => this.#here && this.#look());
    comparison.addEventListener("change", () => this.#here && this.#draw());
    decision.addEventListener("change", () => this.#here && this.#draw());
    addEventListener("hashchange", () => this.#here && this.#look());
  }

  shown() {
    this.#here = true;
    this.#told = "";
    this.#look();
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
    if (!server.modes.records) {
      replace(this.#body, empty("This server keeps nothing, so it shows no runs of ", el("code", {}, "vbon tune"), ". Start it with ", el("code", {}, "--store FILE"), "."));
      return;
    }
    try {
      const { runs } = await get("/tune/runs");
      const wanted = runs.find((one) => one.id === idOf(location.hash)) ?? runs[0];
      const same = this.#run !== null && wanted?.id === this.#run.id && wanted.updated === this.#run.updated;
      // Which table mode auto has, another client may change without news of the run.
      const known = same && (wanted.status === "running" || Date.now() - this.#readAt < LOOK_SELDOM_MS);
      const run = !wanted ? null : known ? { ...this.#run, ...wanted } : await get(`/tune/runs/${wanted.id}`);
      if (mine !== this.#latest) return;
      if (!known) this.#readAt = Date.now();
      this.#tellEnd(run);
      [this.#runs, this.#run] = [runs, run];
      this.#draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (mine !== this.#latest) return;
      if (this.#told === "") replace(this.#body, trouble(error, { retry: () => this.#look() }));
      // A busy server may miss a look; the shell says so when it is gone.
    }
    const busy = this.#runs.some((one) => one.status === "running" && !one.stale);
    if (this.#here) this.#timer = setTimeout(() => this.#look(), busy ? LOOK_MS : LOOK_SELDOM_MS);
  }

  #tellEnd(run) {
    const before = this.#run;
    if (run?.id === before?.id && before?.status === "running" && run.status !== "running") this.#context.announce(`The tuning run has ended: ${ENDED[run.status]}.`);
  }

  #draw() {
    const { modes } = this.#context.server;
    if (modes === null || !modes.records) return;
    this.#command.show(modes, this.#run?.report ?? null);
    if (this.#run === null) {
      this.#told = "none";
      replace(this.#body, this.#command.node);
      return;
    }
    this.#status.show(this.#run);
    const told = JSON.stringify([this.#run.updated, this.#run.applied, this.#runs.map((one) => [one.id, one.status]), comparison.values.judge]);
    if (told === this.#told && this.#body.firstChild === this.#choice) return;
    this.#told = told;
    this.#choose();
    const { report } = this.#run;
    if (report === null) {
      replace(this.#body, this.#choice, empty("Another version of this program kept this run, so it cannot be shown. Remove it, or run the same command again."), this.#settings.node);
      this.#settings.show(this.#run);
      return;
    }
    const parts = [this.#outcome, this.#pareto, this.#checks, this.#trials, this.#settings];
    const nodes = [this.#choice, this.#status.node, ...parts.map((part) => part.node), this.#command.node];
    if (this.#body.firstChild !== this.#choice || this.#body.children.length !== nodes.length) replace(this.#body, nodes);
    for (const part of parts) part.show(this.#run);
  }

  /** The runs to choose from, where there are several. */
  #choose() {
    this.#choice.hidden = this.#runs.length < 2;
    if (document.activeElement?.parentNode?.parentNode === this.#choice) return; // somebody is choosing
    const id = freshId("run");
    const name = (one) => `${new Date(one.started).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" })}: ${one.question}`;
    const select = el(
      "select", { id, value: this.#run.id, on: { change: (event) => { location.hash = comparison.link(`tune/${event.target.value}`); } } },
      this.#runs.map((one) => el("option", { value: one.id }, name(one))),
    );
    replace(this.#choice, el("div", { class: "field" }, el("label", { for: id }, "Run"), select));
  }

  async #apply(settings) {
    await this.#change(async () => {
      this.#run = await post(`/tune/runs/${this.#run.id}/apply`, { settings });
      this.#context.announce("Mode auto has the settings.");
      await this.#context.server.renew();
    });
  }

  async #remove() {
    const { id } = this.#run;
    if (!(await this.#confirmation.ask({ question: "Remove this run from the server? Its files stay where the command wrote them, and what was applied stays in use.", action: "Remove" }))) return;
    await this.#change(async () => {
      await request("DELETE", `/tune/runs/${id}`);
      this.#context.announce("The run is removed.");
      if (idOf(location.hash) === id) location.hash = comparison.link("tune");
    });
  }

  async #change(work) {
    try {
      await work();
      replace(this.#trouble);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      replace(this.#trouble, trouble(error));
      this.#trouble.scrollIntoView({ block: "center" });
    }
    await this.#look();
  }
}

/** The run that an address names. */
function idOf(hash) {
  return /^#tune\/([0-9a-f]{12})/.exec(hash)?.[1] ?? null;
}

function empty(...words) {
  return el("div", { class: "empty" }, el("p", {}, words));
}
