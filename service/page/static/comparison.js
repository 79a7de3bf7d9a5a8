// What is compared: kept in the page's address, so that a link shows the same comparison in every view.

const NUMBERS = ["n", "volume", "price", "hours", "p95"];
const ABOVE_ZERO = ["n", "volume", "price"];
const WORDS = ["tuned", "mode", "judge"];

/**
 * Fires `change`.
 *
 * `tuned`: the fine-tune's mode; `mode` and `n`: the mode it is compared with, and its N; `judge`: `reward` or
 * `gold`; `volume`: answers to be served; `price`: of the machine per hour; `hours`: device hours of training;
 * `p95`: the longest p95 that is accepted, ms. What is null has not been chosen: the newest load test's value
 * then counts.
 */
class Comparison extends EventTarget {
  #values = Object.fromEntries([...WORDS, ...NUMBERS].map((name) => [name, null]));

  constructor() {
    super();
    this.#read();
    addEventListener("hashchange", () => this.#read() && this.#tell());
  }

  get values() {
    return { ...this.#values };
  }

  /** Chooses something; null gives a value back to the load test. */
  set(changes) {
    const before = this.#query();
    Object.assign(this.#values, changes);
    if (this.#query() === before) return;
    try {
      history.replaceState(null, "", this.link(placeOf(location.hash) || "decide"));
    } catch {
      // A report that is opened as a file may not change its address.
    }
    this.#tell();
  }

  /** The address of a view, with the comparison in it. */
  link(view) {
    const query = this.#query();
    return `#${view}${query ? `?${query}` : ""}`;
  }

  #tell() {
    this.dispatchEvent(new Event("change"));
  }

  #query() {
    const chosen = Object.entries(this.#values).filter(([, value]) => value !== null);
    return new URLSearchParams(chosen).toString();
  }

  /** Takes what the address says; returns whether that changed anything. A bare link to a view changes nothing. */
  #read() {
    const at = location.hash.indexOf("?");
    if (at < 0) return false;
    const before = this.#query();
    const given = new URLSearchParams(location.hash.slice(at + 1));
    for (const name of WORDS) this.#values[name] = given.get(name);
    for (const name of NUMBERS) {
      const value = Number(given.get(name));
      const allowed = Number.isFinite(value) && (ABOVE_ZERO.includes(name) ? value > 0 : value >= 0);
      this.#values[name] = given.get(name) && allowed ? value : null;
    }
    return this.#query() !== before;
  }
}

/** The view that an address names. */
export function viewOf(hash) {
  return placeOf(hash).split("/")[0];
}

/** The view with what it shows, such as `tune/0123456789ab`. */
function placeOf(hash) {
  return hash.slice(1).split("?")[0];
}

export const comparison = new Comparison();
