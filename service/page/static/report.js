// The script of a load test's report: the Decide view over the figures in the file, and its charts.

import { plot } from "./charts.js";
import { comparison } from "./comparison.js";
import { el, replace } from "./dom.js";
import { looksOf } from "./styles.js";
import { verdictOf } from "./verdict.js";
import { Controls } from "./views/decide/controls.js";
import { costChart } from "./views/decide/cost_chart.js";
import { statement } from "./views/decide/statement.js";
import { tiles } from "./views/decide/tiles.js";

const GREY = "var(--series-6)";

function data(id) {
  return JSON.parse(document.getElementById(id).textContent);
}

/** The verdict, what-ifs and costs, computed anew when something is put in. */
function decide(found) {
  const place = document.getElementById("decide");
  if (found.pairs.length === 0) return;
  const words = el("section", { class: "card stack tight decide-verdict", "aria-label": "Verdict" });
  const controls = new Controls(comparison);
  const costs = el("div", {});
  const figures = el("div", {});
  const card = el("section", { class: "card stack tight", "aria-label": "Cost" }, el("h2", {}, "What so many answers cost"), costs);
  replace(place, el("div", { class: "first-screen" }, words, card), figures, controls.node);

  const draw = () => {
    const verdict = verdictOf(found, comparison.values);
    replace(
      words,
      el("h2", { class: "unseen" }, "Verdict"),
      statement(found, verdict),
      verdict.pair.state !== "decided" && el("ul", { class: "notes" }, verdict.pair.reasons.map((reason) => el("li", {}, reason))),
    );
    controls.show(found, verdict);
    replace(figures, tiles(verdict));
    costChart(costs, verdict);
  };
  comparison.addEventListener("change", draw);
  new ResizeObserver(draw).observe(place);
  draw();
}

/** The charts below, with boxes that show and hide a variant in all of them. */
function charts(found) {
  const place = document.getElementById("charts");
  const looks = looksOf(found.variants);
  const colourOf = (name) => (looks.has(name) ? `var(${looks.get(name).series})` : GREY);
  const hidden = new Set();
  const cards = found.charts.map((chart) => {
    const series = chart.series.map((one) => ({ ...one, colour: colourOf(one.name), symbol: one.marked ? (looks.get(one.name)?.symbol ?? "circle") : null }));
    const drawn = { ...chart, series };
    const node = el("div", {});
    place.append(el("figure", { class: "card stack tight", "aria-label": chart.title }, el("h3", {}, chart.title), node, el("figcaption", { class: "muted small" }, chart.caption)));
    return () => plot(node, { ...drawn, series: series.filter((one) => !hidden.has(one.name)) }, { legend: false });
  });
  const all = () => cards.forEach((draw) => draw());
  const names = [...new Set([...found.variants, ...found.charts.flatMap((chart) => chart.series.map((one) => one.name))])];
  replace(
    document.getElementById("legend"),
    el("legend", { class: "unseen" }, "Shown in the charts"),
    names.map((name) => {
      const box = el("input", { type: "checkbox", checked: true, on: { change: () => toggle(name, box.checked) } });
      return el("label", { class: "check" }, box, el("span", { class: "swatch", vars: { "--own": colourOf(name) }, "aria-hidden": "true" }), name);
    }),
  );
  const toggle = (name, shown) => {
    if (shown) hidden.delete(name);
    else hidden.add(name);
    all();
  };
  all();
}

decide(data("decision-data"));
charts(data("chart-data"));
