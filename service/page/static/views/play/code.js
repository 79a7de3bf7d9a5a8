// What the form asks, as a command for a terminal and as a Python program.

import { apiKey, located } from "../../api.js";
import { el, replace } from "../../dom.js";

/** A part that stays closed until somebody wants it; `read()` gives `{body, budget, modes}` as the form has them. */
export function code(read) {
  const shown = el("div", { class: "stack tight" });
  const details = el("details", { class: "as-code" }, el("summary", {}, "The same as code"), shown);
  const draw = () => {
    if (!details.open) return;
    const { body, budget, modes } = read();
    const of = (mode) => (mode === "auto" && budget ? { ...body, budget } : body);
    replace(shown, block("curl", modes.map((mode) => curl(mode, of(mode))).join("\n")), block("Python", python(modes, body, modes.includes("auto") ? budget : null)));
  };
  details.addEventListener("toggle", draw);
  return { node: details, draw };
}

/** A text to copy, under its name. */
export function block(name, text) {
  const said = el("span", { class: "muted small", role: "status" });
  const copy = el("button", { type: "button", class: "button quiet slim", on: { click: () => copied(text, said) } }, `Copy ${name}`);
  return el("div", {}, el("div", { class: "row" }, el("span", { class: "field-label" }, name), copy, said), el("pre", { class: "scroll small", tabindex: "0", "aria-label": name }, el("code", {}, text)));
}

async function copied(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    said.textContent = "Copied.";
  } catch {
    said.textContent = "The browser does not allow that here; select the text instead.";
  }
}

function curl(mode, body) {
  const key = apiKey() ? " -H \"Authorization: Bearer $VBON_API_KEY\"" : "";
  // In single quotes a shell changes nothing, and a quote itself ends them for a moment.
  const json = JSON.stringify(body).replaceAll("'", `'\\''`);
  return `curl -X POST '${located(`/generate?mode=${encodeURIComponent(mode)}`)}'${key} -H 'content-type: application/json' -d '${json}'`;
}

function python(modes, body, budget) {
  const key = apiKey() ? ', headers={"authorization": f"Bearer {os.environ[\'VBON_API_KEY\']}"}' : "";
  return [
    ...(apiKey() ? ["import os", ""] : []),
    "import httpx",
    "",
    `body = ${literal(body)}`,
    `for mode in ${literal(modes)}:`,
    ...(budget ? [`    own = {"budget": ${literal(budget)}} if mode == "auto" else {}`] : []),
    `    answer = httpx.post("${located("/generate")}", params={"mode": mode}, json=${budget ? "body | own" : "body"}, timeout=600${key})`,
    "    print(mode, answer.raise_for_status().json()[\"text\"])",
  ].join("\n");
}

/** A Python literal: JSON but for three words. */
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
  return JSON.stringify(value);
}
