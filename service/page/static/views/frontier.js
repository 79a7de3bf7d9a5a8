// Not here yet: says so.

import { el } from "/page/dom.js";

export const title = "Frontier";

export function mount(root) {
  const words = "This view is not here yet.";
  root.append(el("h1", {}, title), el("div", { class: "empty" }, el("p", {}, words)));
}
