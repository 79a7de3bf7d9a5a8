// What state the server is in: asked again and again, told to whoever listens.

import { ApiError, apiEvents, get } from "./api.js";

const WHILE_NOT_READY_MS = 1500;
const WHILE_READY_MS = 10_000;
const PATIENCE_MS = 8000;

// Errors after which the server may not be what it was.
const DOUBTFUL = new Set(["broken", "engine_dead", "network", "not_ready", "reward_dead", "shutting_down"]);

/**
 * Fires `change`.
 *
 * `state`: `connecting`, `loading` (models), `ready`, `degraded` (it was ready; some models cannot answer now,
 * others can), `locked` (a key is missing) or `gone` (nobody answers); `message`: the server's own words on it;
 * `modes`: the answer of GET /modes, from the first `ready` on.
 */
class Server extends EventTarget {
  state = "connecting";
  message = "";
  modes = null;
  #timer = null;
  #asking = false;

  start() {
    apiEvents.addEventListener("failed", (event) => this.#failed(event.detail));
    document.addEventListener("visibilitychange", () => document.hidden || this.check());
    return this.check();
  }

  /** Asks now. */
  async check() {
    if (this.#asking) return;
    this.#asking = true;
    clearTimeout(this.#timer);
    try {
      const { status } = await get("/readyz", { signal: AbortSignal.timeout(PATIENCE_MS) });
      if (this.modes === null || this.state !== "ready") this.modes = await get("/modes");
      this.#become("ready", status);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 503) this.#become(this.modes ? "degraded" : "loading", error.message);
      else if (error.status !== 401) this.#gone(error.message);
    } finally {
      this.#asking = false;
      const pause = this.state === "ready" ? WHILE_READY_MS : WHILE_NOT_READY_MS;
      // Without a key there is nothing to ask for; a new key asks at once.
      if (this.state !== "locked") this.#timer = setTimeout(() => this.check(), pause);
    }
  }

  /** Asks for the modes anew, where something on this page has changed them. */
  async renew() {
    this.modes = await get("/modes");
    this.dispatchEvent(new Event("change"));
  }

  /** Whether at least some modes can be asked. */
  get answers() {
    return this.state === "ready" || this.state === "degraded";
  }

  /** The modes, as soon as the server answers. */
  async whenReady() {
    while (!this.answers) {
      await new Promise((resolve) => this.addEventListener("change", resolve, { once: true }));
    }
    return this.modes;
  }

  #gone(message) {
    this.modes = null; // whoever answers there next may have others
    this.#become("gone", message);
  }

  #failed(error) {
    if (error.status === 401) this.#become("locked", error.message);
    else if (DOUBTFUL.has(error.type)) this.check();
  }

  #become(state, message) {
    if (state === this.state && message === this.message) return;
    this.state = state;
    this.message = message;
    this.dispatchEvent(new Event("change"));
  }
}

export const server = new Server();
