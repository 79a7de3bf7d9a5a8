// Tune: the trials of a run of vbon tune as they come. Its code is loaded when it is shown first.

import { el, replace } from "../dom.js";

export const title = "Tune";

let view = null;

export async function mount(root, context) {
  replace(root, el("h1", { class: "unseen" }, title));
  try {
    const { Tune } = await import("./tune/view.js");
    view ??= new Tune(context);
  } catch (error) {
    root.append(el("p", { class: "error" }, `This view could not be loaded (${error.message}). Is the server still there? Load the page again.`));
    return;
  }
  if (!root.isConnected) return; // another view is shown by now
  root.append(...view.parts);
  view.shown();
}

export function unmount() {
  view?.left();
}
