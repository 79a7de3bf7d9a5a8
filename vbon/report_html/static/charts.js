// Charts that answer to hands: points are read by pointer, touch and keys, parts are enlarged, series are hidden.

import { el, freshId, replace, svg } from "./dom.js";
import { mark, xyChart, xyTable } from "./xy_chart.js";

const NEAR = 28; // pixels from a point within which it is read
const DRAGGED = 8; // pixels from which a movement is no click
const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "text-anchor", "paint-order"];

const charts = new WeakMap(); // node -> its chart

/**
 * Draws, or draws anew, in `node`, and again whenever its width changes. What is hidden and enlarged stays so.
 *
 * `chart` as `xyChart` takes it, with a `table` for who cannot see it where its points' x and y are not enough.
 * `legend` and `table` are false where the caller has its own.
 */
export function plot(node, chart, { legend = true, table = true } = {}) {
  if (!charts.has(node)) charts.set(node, new Chart(node, { legend, table }));
  charts.get(node).show(chart);
}

class Chart {
  #node;
  #chart = null;
  #drawn = null;
  #view = null; // the ranges shown, or null for all
  #hidden = new Set();
  #read = null; // the point that is told
  #from = null; // where dragging began
  #picture = el("div", { class: "xy-picture" });
  #tip = el("div", { class: "xy-tip", hidden: true });
  #said = el("p", { class: "unseen", "aria-live": "polite" });
  #hint = el("p", { class: "unseen", id: freshId("chart-keys") }, "Arrow keys read point after point, plus and minus enlarge and reduce, 0 shows all.");
  #legend = el("ul", { class: "legend", "aria-label": "Series" });
  #all = el("button", { type: "button", class: "button quiet slim", on: { click: () => this.#zoomed(null) } }, "Show all");
  #tools;
  #table;

  constructor(node, { legend, table }) {
    this.#node = node;
    const tool = (words, sign, act) => el("button", { type: "button", class: "button quiet slim", "aria-label": words, title: words, on: { click: act } }, sign);
    const buttons = [
      this.#all,
      tool("Enlarge", "+", () => this.#zoom(0.6)),
      tool("Reduce", "−", () => this.#zoom(1 / 0.6)),
      tool("Save as SVG", "SVG", () => this.#save()),
    ];
    this.#tools = el("div", { class: "row apart xy-tools" }, legend ? this.#legend : el("span", {}), el("div", { class: "row xy-buttons" }, buttons));
    this.#table = table ? el("div", {}) : null;
    this.#picture.append(this.#tip);
    this.#listen();
    new ResizeObserver(() => this.#chart && this.#drawn?.width !== this.#picture.clientWidth && this.#draw()).observe(this.#picture);
  }

  show(chart) {
    const axes = (one) => one && [one.x.label, one.y.label].join();
    if (axes(chart) !== axes(this.#chart)) this.#view = null;
    this.#chart = chart;
    if (this.#picture.parentNode !== this.#node) replace(this.#node, this.#tools, this.#picture, this.#said, this.#hint, this.#table);
    this.#draw();
    if (!this.#table) return;
    const open = this.#table.firstElementChild?.open ?? false;
    const made = xyTable(chart);
    made.open = open;
    replace(this.#table, made);
  }

  #draw() {
    const width = this.#picture.clientWidth;
    if (width === 0) return; // drawn once it has a place
    const series = this.#chart.series.filter(({ name }) => !this.#hidden.has(name));
    const focused = this.#drawn?.node === document.activeElement;
    this.#drawn?.node.remove();
    this.#drawn = { ...xyChart({ ...this.#chart, series }, { width, view: this.#view }), width };
    const { node } = this.#drawn;
    node.setAttribute("tabindex", "0");
    node.setAttribute("aria-describedby", this.#hint.id);
    this.#picture.prepend(node);
    if (focused) node.focus({ preventScroll: true });
    this.#all.hidden = this.#view === null;
    this.#tell(null);
    this.#showLegend();
  }

  #showLegend() {
    const named = new Map();
    for (const one of this.#chart.series) {
      const known = named.get(one.name);
      if (!known || (!known.symbol && one.symbol)) named.set(one.name, one);
      else if (one.symbol && known.colour !== one.colour) named.set(one.name, { ...known, colour: "var(--muted)", symbol: "circle" });
    }
    if (this.#legend.childElementCount === named.size && [...this.#legend.children].every((item) => named.has(item.textContent))) return;
    const item = (one) => {
      const drawn = one.symbol ? mark(one.symbol, one.points[0]?.kind ?? "", one.colour) : mark("M-8 0H8", null, one.colour);
      const button = el("button", { type: "button", class: "xy-series", "aria-pressed": String(!this.#hidden.has(one.name)), title: `Shows and hides ${one.name}` }, drawn, one.name);
      button.addEventListener("click", () => this.#toggle(one.name, button));
      return el("li", {}, button);
    };
    replace(this.#legend, [...named.values()].map(item));
  }

  #toggle(name, button) {
    if (!this.#hidden.delete(name)) this.#hidden.add(name);
    button.setAttribute("aria-pressed", String(!this.#hidden.has(name)));
    this.#draw();
  }

  // ---- reading points

  #listen() {
    const on = (event, act) => this.#picture.addEventListener(event, act);
    on("pointermove", (event) => (this.#from ? this.#drag(event) : this.#point(event)));
    on("pointerleave", () => !this.#from && this.#tell(null));
    on("pointerdown", (event) => this.#pressed(event));
    on("pointerup", (event) => this.#released(event));
    on("pointercancel", () => this.#released(null));
    on("dblclick", () => this.#zoomed(null));
    on("keydown", (event) => this.#key(event));
    on("focusout", () => this.#tell(null));
  }

  #place(event) {
    const box = this.#picture.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #point(event) {
    const [left, top] = this.#place(event);
    let [nearest, least] = [null, NEAR];
    for (const one of this.#drawn?.marks ?? []) {
      const far = Math.hypot(one.left - left, one.top - top);
      if (far < least) [nearest, least] = [one, far];
    }
    this.#tell(nearest);
  }

  #tell(one, { aloud = false } = {}) {
    if (one === this.#read) return;
    this.#read = one;
    this.#drawn?.node.querySelector(".reading")?.remove();
    this.#tip.hidden = one === null;
    this.#said.textContent = one && aloud ? one.about : "";
    if (one === null) return;
    this.#drawn.node.append(svg("circle", { class: "reading", cx: one.left, cy: one.top, r: 9 }));
    replace(this.#tip, one.about.split("\n").map((line) => el("p", {}, line)));
    const { offsetWidth: width, offsetHeight: height } = this.#tip;
    const left = Math.max(0, Math.min(one.left + 14, this.#drawn.width - width));
    const below = one.top + 14;
    const above = one.top - height - 14;
    this.#tip.style.setProperty("--left", `${left}px`);
    this.#tip.style.setProperty("--top", `${above >= 0 ? above : below}px`);
  }

  #key(event) {
    const { key } = event;
    if (event.target !== this.#drawn?.node || event.ctrlKey || event.metaKey || event.altKey) return;
    const { marks } = this.#drawn;
    const at = marks.indexOf(this.#read);
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at < 0 ? marks.length - 1 : at - 1, ArrowUp: at < 0 ? marks.length - 1 : at - 1, Home: 0, End: marks.length - 1 }[key];
    if (next !== undefined && marks.length) this.#tell(marks[(next + marks.length) % marks.length], { aloud: true });
    else if (key === "+" || key === "=") this.#zoom(0.6);
    else if (key === "-") this.#zoom(1 / 0.6);
    else if (key === "0") this.#zoomed(null);
    else if (key === "Escape" && this.#read) this.#tell(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // ---- enlarging

  #zoom(factor) {
    const { x, y, box } = this.#drawn;
    const [left, right, top, bottom] = [box.left, box.width - box.right, box.top, box.height - box.bottom];
    const [midX, midY] = this.#read ? [this.#read.left, this.#read.top] : [(left + right) / 2, (top + bottom) / 2];
    const to = (edge, middle) => middle + (edge - middle) * factor;
    this.#zoomed({ x: [x.at(to(left, midX)), x.at(to(right, midX))], y: [y.at(to(bottom, midY)), y.at(to(top, midY))] });
  }

  #zoomed(view) {
    const sound = view === null || [view.x, view.y].every(([low, high]) => Number.isFinite(low) && Number.isFinite(high) && high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)));
    if (!sound) return;
    const hadFocus = document.activeElement === this.#all;
    this.#view = view;
    this.#draw();
    if (hadFocus) this.#drawn.node.focus({ preventScroll: true });
  }

  #pressed(event) {
    if (event.pointerType !== "mouse") this.#point(event);
    else if (event.button === 0) this.#from = this.#place(event);
  }

  #drag(event) {
    const { left, top, right, bottom } = this.#dragged(event);
    this.#drawn.node.querySelector(".dragged")?.remove();
    if (Math.max(right - left, bottom - top) < DRAGGED) return;
    if (!this.#picture.hasPointerCapture(event.pointerId)) this.#picture.setPointerCapture(event.pointerId);
    this.#tell(null);
    this.#drawn.node.append(svg("rect", { class: "dragged", x: left, y: top, width: right - left, height: bottom - top }));
  }

  /** The part that is marked: a narrow one takes the whole of its other axis. */
  #dragged(event) {
    const { box } = this.#drawn;
    const within = ([x, y]) => [Math.min(Math.max(x, box.left), box.width - box.right), Math.min(Math.max(y, box.top), box.height - box.bottom)];
    const [[x1, y1], [x2, y2]] = [within(this.#from), within(this.#place(event))];
    const wide = Math.abs(x2 - x1) >= DRAGGED;
    const high = Math.abs(y2 - y1) >= DRAGGED;
    return {
      left: wide || !high ? Math.min(x1, x2) : box.left, right: wide || !high ? Math.max(x1, x2) : box.width - box.right,
      top: high || !wide ? Math.min(y1, y2) : box.top, bottom: high || !wide ? Math.max(y1, y2) : box.height - box.bottom,
    };
  }

  #released(event) {
    if (!this.#from) return;
    const part = event && this.#dragged(event);
    this.#from = null;
    this.#drawn.node.querySelector(".dragged")?.remove();
    if (!part || part.right - part.left < DRAGGED || part.bottom - part.top < DRAGGED) return;
    const { x, y } = this.#drawn;
    this.#zoomed({ x: [x.at(part.left), x.at(part.right)], y: [y.at(part.bottom), y.at(part.top)] });
  }

  // ---- keeping

  /** A file that looks the same elsewhere: what the style sheets say is written into its elements. */
  #save() {
    const { node } = this.#drawn;
    const copy = node.cloneNode(true);
    const [from, to] = [[node, ...node.querySelectorAll("*")], [copy, ...copy.querySelectorAll("*")]];
    for (const [i, one] of from.entries()) {
      const style = getComputedStyle(one);
      for (const name of DRAWN) to[i].setAttribute(name, style.getPropertyValue(name));
      for (const name of ["class", "style", "data-variant"]) to[i].removeAttribute(name);
    }
    copy.removeAttribute("tabindex");
    copy.removeAttribute("aria-describedby");
    copy.prepend(svg("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor }));
    const address = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(copy)], { type: "image/svg+xml" }));
    const name = this.#chart.label.split(":")[0].replaceAll(/[^\p{L}\p{N}]+/gu, "-").toLowerCase();
    el("a", { href: address, download: `${name}.svg` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }
}
