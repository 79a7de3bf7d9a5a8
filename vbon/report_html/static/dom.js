// Builds elements. Text only ever becomes text: nothing here, or anywhere on the page, parses markup.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "open", "selected", "indeterminate"]);
const REFUSED = /^(on.*|style|srcdoc|innerhtml|outerhtml|html)$/i;

/**
 * An element.
 *
 * `props`: `class`, attributes by name (`true` for bare ones; null, undefined and false leave them out),
 * `on: {event: listener}`, `data: {name: value}`, `vars: {"--name": value}` (CSS variables).
 * `children`: nodes, text, numbers, arrays of these; null, undefined and false are left out.
 */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  const given = Object.entries(props ?? {});
  for (const [name, value] of given) if (!PROPERTIES.has(name)) set(node, name, value);
  append(node, children);
  // Last, since a select only takes the value of an option that it has.
  for (const [name, value] of given) if (PROPERTIES.has(name)) node[name] = value ?? (name === "value" ? "" : false);
  return node;
}

function set(node, name, value) {
  if (name === "on") {
    for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
  } else if (name === "data") {
    for (const [key, one] of Object.entries(value)) node.dataset[key] = one;
  } else if (name === "vars") {
    for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
  } else if (REFUSED.test(name)) {
    throw new Error(`${name} would be run or parsed; use \`on\`, \`vars\` or children`);
  } else if (value === null || value === undefined || value === false) {
    return;
  } else if (name === "href" && !/^(#|\/|https?:|blob:)/.test(value)) {
    throw new Error(`${value} is no address this page links to`);
  } else {
    node.setAttribute(name, value === true ? "" : String(value));
  }
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : String(child));
  }
}

/** Puts children in the place of all that is in a node. */
export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

let made = 0;

/** An id that no other element has, for labels and descriptions. */
export function freshId(prefix = "e") {
  made += 1;
  return `${prefix}-${made}`;
}

/** A labelled input, select or textarea, in a block. */
export function field(label, input, props = {}) {
  input.id ||= freshId("field");
  return el("div", { class: "field", ...props }, el("label", { for: input.id }, label), input);
}

/**
 * A table whose heads sort its rows, by the `data-value` of their cells: numbers by size, the largest first, other
 * texts by the alphabet. Cells without a value come last either way.
 */
export function sortable(table) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    const text = head.textContent;
    replace(head, el("button", { type: "button", class: "sorts", on: { click: () => sort(table, column, head) } }, text));
  }
  return table;
}

function sort(table, column, head) {
  const rows = [...table.tBodies[0].rows];
  const valueOf = (row) => row.cells[column].dataset.value;
  const known = rows.filter((row) => valueOf(row) !== "");
  const numeric = known.every((row) => Number.isFinite(Number(valueOf(row))));
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  const compare = (a, b) => (numeric ? valueOf(a) - valueOf(b) : valueOf(a).localeCompare(valueOf(b)));
  known.sort((a, b) => (order === "ascending" ? compare(a, b) : compare(b, a)));
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  table.tBodies[0].append(...known, ...rows.filter((row) => !known.includes(row)));
}

// ---- numbers

const formats = new Map();

/** A number with so many digits behind the point; a dash where there is none. */
export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (!formats.has(digits)) {
    const fraction = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    formats.set(digits, new Intl.NumberFormat("en-US", fraction));
  }
  const text = formats.get(digits).format(value);
  return /^-0(\.0+)?$/.test(text) ? text.slice(1) : text;
}

/** A number with so many digits that count: 1,640 with two is 1,600. */
export function significant(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const key = `significant ${digits}`;
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat("en-US", { maximumSignificantDigits: digits }));
  return formats.get(key).format(value);
}

/** Milliseconds as a person reads them: 0.42 ms, 87 ms, 2.35 s, 3 min 20 s. */
export function duration(ms) {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) return "–";
  if (ms < 1) return `${number(ms, 2)} ms`;
  if (ms < 10) return `${number(ms, 1)} ms`;
  if (ms < 999.5) return `${number(ms)} ms`;
  if (ms < 60_000) return `${number(ms / 1000, 2)} s`;
  const seconds = Math.round(ms / 1000);
  return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** A share of one as a percentage. */
export function percent(share, digits = 0) {
  return Number.isFinite(share) ? `${number(share * 100, digits)}%` : "–";
}

/** A count with its noun: 1 verdict, 3 verdicts. */
export function counted(count, noun, plural = `${noun}s`) {
  return `${number(count)} ${count === 1 ? noun : plural}`;
}
