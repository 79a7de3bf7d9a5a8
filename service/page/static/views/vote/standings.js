// Win rates by people's verdicts beside the reward model's on the same pairs.

import { counted, el, number, percent } from "../../dom.js";

/** The tables of the models served and, folded, of earlier ones; or what to do to get them. */
export function standings(lines) {
  if (lines.length === 0) {
    return el("div", { class: "empty" }, el("p", {}, "No verdicts yet. Yours will be the first."));
  }
  const [now, before] = [lines.filter((line) => line.current), lines.filter((line) => !line.current)];
  return [
    now.length ? table(now) : el("p", { class: "muted" }, "No verdicts on the models that are served now."),
    before.length > 0 && el("details", {}, el("summary", {}, `Verdicts on other models, such as earlier checkpoints (${counted(before.length, "pair")})`), table(before)),
  ];
}

function table(lines) {
  const head = ["Mode", "Verdicts", "Win rate by people", "by the reward model"];
  return el(
    "div", { class: "scroll" },
    el(
      "table", { class: "table standings" },
      el("caption", {}, "How often the first of each pair wins, ties and “both bad” as halves; from five verdicts on with the 95% interval."),
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, lines.map(row)),
    ),
  );
}

function row(line) {
  const { wins, losses, ties, both_bad: bad } = line;
  return el(
    "tr", {},
    el("th", { scope: "row" }, named(line.mode, line.n), el("span", { class: "muted" }, " against "), named(line.against, line.against_n)),
    el("td", { title: `${wins} won, ${losses} lost, ${ties} tied, ${bad} both bad` }, counted(wins + losses + ties + bad, "verdict"), bad > 0 && el("span", { class: "muted small" }, ` ${number(bad)} both bad`)),
    el("td", { "data-label": "Win rate by people" }, share(line.human_win_rate, "people")),
    el("td", { "data-label": "by the reward model" }, line.reward_win_rate ? share(line.reward_win_rate, "reward") : el("span", { class: "muted" }, "not scored")),
  );
}

function named(mode, n) {
  return el("span", { class: "named" }, mode, n > 1 && el("span", { class: "muted" }, ` N = ${number(n)}`));
}

// Fewer verdicts, often all alike, would give an interval that promises what it does not know.
const FEW = 5;

function share({ mean, low, high, count }, kind) {
  const sure = count >= FEW;
  const vars = { "--mean": String(mean), "--low": String(low), "--high": String(high) };
  return el(
    "div", { class: "share", data: { kind }, vars },
    el("span", { class: "interval", "aria-hidden": "true" }, sure && el("span", { class: "span" }), el("span", { class: "half" }), el("span", { class: "mean" })),
    el("span", {}, percent(mean), sure && el("span", { class: "muted small" }, ` ${number(low * 100)} to ${number(high * 100)}`)),
  );
}
