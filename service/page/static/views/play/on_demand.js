// Parts of an answer that are shown when somebody opens them.

import { el } from "../../dom.js";

const opened = new Set(); // their names: what was opened is open in later answers too, while the page is

/** A closed part under its summary; `name` tells it from the others, `summary` is a node or text. */
export function onDemand(name, summary, ...children) {
  const node = el("details", { class: "drawn", open: opened.has(name) }, el("summary", {}, summary), children);
  node.addEventListener("toggle", () => (node.open ? opened.add(name) : opened.delete(name)));
  return node;
}
