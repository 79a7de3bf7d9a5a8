// Two runs against each other.

import { el, number, significant } from "../../dom.js";

const KINDS = { better: "good", worse: "bad" };

/** What the server says of run B against run A: the statement, what differs, and each figure that both have. */
export function comparison(found, called) {
  const settings = Object.entries(found.settings_changed);
  const models = Object.entries(found.models_changed);
  const caption = `${capital(called(found.b))} (B) against ${called(found.a)} (A)`;
  const head = ["what", "figure", "A", "B", "change, 95% interval", "adjusted p", "B is"];
  return el(
    "section", { class: "stack tight", "aria-label": caption },
    el("h3", {}, caption),
    el("p", {}, found.statement),
    models.map(([name, [a, b]]) => el("p", { class: "small" }, `The model ${name} differs: `, el("span", { class: "mono" }, shortened(a)), " in A, ", el("span", { class: "mono" }, shortened(b)), " in B")),
    models.length === 0 && el("p", { class: "muted small" }, "Both measured the same models."),
    found.differences.length > 0 &&
      el(
        "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${caption}, in figures` },
        el(
          "table", { class: "table figures" },
          el("thead", {}, el("tr", {}, head.map((name, i) => el("th", { scope: "col", class: i > 1 ? "num" : null }, name)))),
          el("tbody", {}, found.differences.map(row)),
        ),
      ),
    settings.map(([name, [a, b]]) => el("p", { class: "muted small" }, `${name}: ${JSON.stringify(a)} in A, ${JSON.stringify(b)} in B`)),
    found.only_in_one.length > 0 && el("p", { class: "muted small" }, `In one run only: ${found.only_in_one.join("; ")}`),
  );
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

function changed(one, shown) {
  return one.low === null ? shown(one.change) : `${shown(one.change)} (${shown(one.low)} to ${shown(one.high)})`;
}

function row(one) {
  const shown = (value) => (one.relative ? `${significant(value)}x` : number(value, 3));
  return el(
    "tr", {},
    el("th", { scope: "row" }, one.what),
    el("td", {}, one.measure),
    [significant(one.a), significant(one.b), changed(one, shown), one.p_adjusted === null ? "–" : number(one.p_adjusted, 4)].map(
      (text) => el("td", { class: "num" }, text),
    ),
    el("td", { class: "num" }, el("span", { class: `badge ${KINDS[one.verdict] ?? ""}` }, one.verdict)),
  );
}

/** The beginning of a revision. */
export function shortened(revision) {
  return revision === null ? "absent" : revision.replace(/^sha256:/, "").slice(0, 8);
}
