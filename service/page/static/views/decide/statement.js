// The verdict as the first card of the Decide view and of a report.

import { el } from "../../dom.js";
import { atVolume, confidence, headline, paybackTime, quality } from "./words.js";

/** The state of the comparison, when the fine-tune pays, what is given up, and what to do at the volume. */
export function statement(found, verdict) {
  const [state, kind, why] = confidence(verdict, found);
  const time = paybackTime(verdict);
  const volume = atVolume(verdict);
  return [
    el("div", { class: "row" }, el("span", { class: `badge ${kind}` }, state), why && el("span", { class: "muted small" }, why)),
    el("p", { class: "headline" }, headline(verdict), time && el("span", { class: "muted" }, ` That is ${time}.`)),
    el("p", {}, quality(verdict)),
    volume && el("p", {}, volume),
  ];
}
