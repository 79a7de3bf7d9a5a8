// The script of the report on sweeps: its charts, and the boxes that hide a method in all charts of its section.

import { plot } from "./charts.js";

const charts = JSON.parse(document.getElementById("chart-data").textContent);

function draw(section) {
  const hidden = new Set([...section.querySelectorAll("[data-method]")].filter((box) => !box.checked).map((box) => box.dataset.method));
  for (const figure of section.querySelectorAll("figure > div")) {
    const chart = charts[figure.id];
    plot(figure, { ...chart, series: chart.series.filter((one) => !hidden.has(one.name)) }, { legend: false });
  }
}

for (const section of document.querySelectorAll("main > section")) {
  section.addEventListener("change", () => draw(section));
  draw(section);
}
