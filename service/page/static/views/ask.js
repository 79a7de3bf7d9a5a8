// Not here yet: says so.

import { el } from "/page/dom.js";

export const title = "Ask";

export function mount(root) {
  root.append(el("h1", {}, title), el("div", { class: "empty" }, el("p", {}, "This view is not here yet.")));
}
