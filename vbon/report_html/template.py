"""The report's page, with ``{{slots}}`` for what is filled in.

Its content security policy lets nothing be loaded, whatever the records say.
"""

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';
  style-src 'unsafe-inline'; img-src data: blob:">
<title>{{title}}</title>
<style>
:root { --ink: #1c1f24; --soft: #5a616b; --line: #d5d9df; --page: #ffffff;
  --band: #f4f6f8; --link: #0a58b0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3abb5; --line: #3a4048; --page: #15181c;
    --band: #1f242a; --link: #7db8ff; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
header, main { max-width: 78rem; margin: 0 auto; padding: 0 1rem; }
main { padding-bottom: 4rem; }
h1 { font-size: 1.7rem; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; overflow-wrap: anywhere;
  border-top: 2px solid var(--line); padding-top: 1.2rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
header p, section li { max-width: 60rem; overflow-wrap: anywhere; }
header p, caption, figcaption { color: var(--soft); font-size: .87rem; }
a { color: var(--link); }
.plots { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { margin-top: .3rem; }
.legend { border: 1px solid var(--line); border-radius: 6px; margin: 0 0 1rem; padding: .3rem .8rem .5rem;
  display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .87rem; }
.legend label { cursor: pointer; overflow-wrap: anywhere; }
.glyph { display: inline-block; min-width: 1.2em; text-align: center; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: max-content; font-size: .87rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .5rem; max-width: 60rem; }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { background: var(--band); vertical-align: bottom; }
tbody th { font-weight: 600; }
td { max-width: 26rem; overflow-wrap: anywhere; }
.figure { text-align: right; }
.figure, .range { white-space: nowrap; }
.sorts { all: unset; cursor: pointer; font-weight: 600; }
.sorts:focus-visible { outline: 2px solid var(--link); }
th[aria-sort="ascending"] .sorts::after { content: " \2191"; }
th[aria-sort="descending"] .sorts::after { content: " \2193"; }
.settings { width: 100%; }
.settings td { max-width: none; min-width: 14rem; }
details { margin-top: 2rem; }
summary { cursor: pointer; font-weight: 600; }
.decision { border-left: 4px solid var(--link); background: var(--band); padding: .8rem 1.1rem;
  margin: 1rem 0; max-width: 62rem; }
.decision p { margin: .3rem 0; font-size: 1rem; color: var(--ink); overflow-wrap: anywhere; }
.decision p:first-child { font-size: 1.25rem; font-weight: 650; line-height: 1.35; }
.warning { border-left: 4px solid #d55e00; margin-left: 0; padding: .3rem .9rem .3rem 2rem;
  max-width: 62rem; }
@media (max-width: 40rem) {
  th, td { padding: .3rem .45rem; }
  tbody th { max-width: 8rem; }
  caption { max-width: calc(100vw - 2rem); }
}
@media print { .legend input { display: none; } }
</style>
</head>
<body>
<header>
<h1>{{title}}</h1>
<p>{{terms}}</p>
{{contents}}
<noscript><p>The plots need JavaScript; every figure in them stands in the tables too.</p></noscript>
</header>
<main>
{{main}}
</main>
<script>
"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const plots = [...document.querySelectorAll(".js-plotly-plot")];
function paint() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  for (const plot of plots) {
    Plotly.relayout(plot, {
      "font.color": colour("--ink"), "font.family": "system-ui, sans-serif",
      "xaxis.gridcolor": colour("--line"), "yaxis.gridcolor": colour("--line"),
      "xaxis.linecolor": colour("--soft"), "yaxis.linecolor": colour("--soft"),
      "hoverlabel.bgcolor": colour("--band"), "hoverlabel.font.color": colour("--ink"),
      "hoverlabel.align": "left",
      "modebar.color": colour("--soft"), "modebar.activecolor": colour("--ink"),
      "modebar.bgcolor": "rgba(0,0,0,0)",
    });
  }
}
dark.addEventListener("change", paint);
paint();

// The legend's boxes hide a method in every plot of its section.
for (const box of document.querySelectorAll("[data-method]")) {
  box.addEventListener("change", () => {
    for (const plot of box.closest("section").querySelectorAll(".js-plotly-plot")) {
      const which = plot.data.flatMap((trace, i) => (trace.meta === box.dataset.method ? [i] : []));
      if (which.length) Plotly.restyle(plot, { visible: box.checked }, which);
    }
  });
}

// A click on a header of the table of cells sorts by it; what has no number comes last.
for (const table of document.querySelectorAll("table.cells")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sorts";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[column].textContent;
      const value = (row) => parseFloat(text(row));
      const body = table.tBodies[0];
      const numeric = [...body.rows].some((row) => !Number.isNaN(value(row)));
      const order = (a, b) => numeric
        ? value(a) - value(b)
        : text(a).localeCompare(text(b), undefined, { numeric: true });
      const missing = (row) => numeric && Number.isNaN(value(row));
      const rows = [...body.rows].filter((row) => !missing(row)).sort(order);
      if (down) rows.reverse();
      body.append(...rows, ...[...body.rows].filter(missing));
    });
  });
}
</script>
</body>
</html>
"""
