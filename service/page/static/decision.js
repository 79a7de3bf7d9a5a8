// The figures on which is decided, asked for once the server answers again after each load test, and when Decide is shown again.

import { ApiError, get } from "./api.js";
import { server } from "./server.js";

/** Fires `change`. `found`: the answer of GET /decision, null before it came; `error`: the ApiError of the last try. */
class DecisionFigures extends EventTarget {
  found = null;
  error = null;
  #asking = false;
  #again = false; // somebody wants newer figures than those on their way

  start() {
    server.addEventListener("change", () => server.state === "ready" && this.refresh());
  }

  async refresh() {
    if (this.#asking) {
      this.#again = true;
      return;
    }
    this.#asking = true;
    this.#again = false;
    try {
      this.found = await get("/decision");
      this.error = null;
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.error = error;
    } finally {
      this.#asking = false;
    }
    this.dispatchEvent(new Event("change"));
    if (this.#again) await this.refresh();
  }
}

export const decision = new DecisionFigures();
