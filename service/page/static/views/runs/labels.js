// The name and tags of a kept run, and its deletion, each in a line below it.

import { el, field, replace } from "../../dom.js";

export class Labels {
  node = el("div", { class: "labels" });
  #run;
  #on;

  constructor({ run, name, on }) {
    this.#run = run;
    this.#on = on;
    const button = (words, open) =>
      el("button", { type: "button", class: "button quiet slim", "aria-label": `${words} ${name}`, on: { click: open } }, words);
    this.rename = button("Rename", () => this.#naming());
    this.rename.dataset.rename = "";
    this.remove = button("Delete", () => this.#deleting());
  }

  #naming() {
    const name = el("input", { value: this.#run.name ?? "", maxlength: 80, autocomplete: "off" });
    const tags = el("input", { value: this.#run.tags.join(", "), placeholder: "before, after", autocomplete: "off" });
    const before = tags.value;
    // Tags that nobody has touched stay as they are: one may have a comma, and there may be many.
    const changed = () => (tags.value === before ? {} : { tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean) });
    const label = () => this.#on.label(this.#run.id, { name: name.value.trim(), ...changed() });
    this.#open("Save", this.rename, label, [field("Name", name), field("Tags", tags)]);
    name.focus();
  }

  #deleting() {
    const words = el("p", {}, "Delete this run and its figures for good?");
    this.#open("Delete it", this.remove, () => this.#on.remove(this.#run.id), [words]).focus();
  }

  /** A form in the run's line; the list is made anew where it worked. */
  #open(words, opener, act, parts) {
    const close = () => {
      replace(this.node);
      opener.focus();
    };
    const submit = async (event) => {
      event.preventDefault();
      for (const one of buttons) one.disabled = true;
      if (await act()) return;
      for (const one of buttons) one.disabled = false;
    };
    const buttons = [
      el("button", { type: "submit", class: "button slim primary" }, words),
      el("button", { type: "button", class: "button slim", on: { click: close } }, "Cancel"),
    ];
    const keydown = (event) => event.key === "Escape" && close();
    replace(this.node, el("form", { class: "row", on: { submit, keydown } }, parts, buttons));
    return buttons[0];
  }
}
