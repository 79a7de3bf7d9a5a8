// The frontier's two plots, as traces.

import { colour, plain } from "../../charts.js";
import { duration, number } from "../../dom.js";
import { styleOf } from "../../styles.js";
import { bars } from "../runs/plots.js";

const CURVE = styleOf("bon").series;
const AXES = { win_rate: "win rate against the reference", reward: "mean reward" };
const GOLD = { win_rate: "gold_win_rate", reward: "gold" };

/** `[traces, layout, options]` of `plot`; `field` is `win_rate` or `reward`. */
export function frontierPlot(found, field, gold) {
  const which = gold ? GOLD[field] : field;
  const policies = found.policies.filter((one) => one.kl_nats && one[which]);
  // Load tests score by the reward that selects; the gold one is not asked.
  const live = gold ? [] : found.live.filter((one) => one.kl_nats && one[field]);
  const curve = found.best_of_n.filter((one) => one[which]);
  const traces = () => [
    ...(field === "win_rate" && !gold ? [ceiling(found.bounds)] : []),
    ...(curve.length ? [measured(curve, which)] : []),
    ...policies.map((one) => policy(one, which, look(found, one.name))),
    ...live.map((one, i) => served(one, field, look(found, one.mode), i === 0)),
  ];
  const layout = {
    height: 420,
    autosize: true,
    xaxis: { title: { text: "KL from the reference, nats" }, rangemode: "tozero" },
    yaxis: { title: { text: `${gold ? "gold " : ""}${AXES[field]}` } },
  };
  const rows = [
    ...curve.map((one) => [`best-of-${one.n}`, one.kl_nats.mean, one[which].mean]),
    ...policies.map((one) => [one.name, one.kl_nats.mean, one[which].mean]),
    ...live.map((one) => [`${named(one)}, live`, one.kl_nats.mean, one[field].mean]),
  ];
  const label = `KL and ${AXES[field]}: ${rows.map(([name, kl, value]) => `${name}: ${number(kl, 2)} nats, ${number(value, 3)}`).join("; ")}`;
  return [traces, layout, { label, table: { columns: ["method", "KL, nats", AXES[field]], rows } }];
}

function look(found, name) {
  return { labelled: found.policies.some((one) => one.name === name), ...styleOf(name) };
}

export function named({ mode, n }) {
  return n > 1 ? `${mode}, N = ${n}` : mode;
}

function ceiling(bounds) {
  return {
    x: bounds.map((one) => one.kl_nats), y: bounds.map((one) => one.win_rate),
    mode: "lines", name: "best-of-n in theory",
    line: { color: colour(CURVE), width: 1.5, dash: "dot", shape: "spline" },
    hovertext: bounds.map((one) => `best-of-${one.n} in theory<br>KL at most ${number(one.kl_nats, 3)} nats<br>win rate at most ${number(one.win_rate, 3)}`),
    hovertemplate: "%{hovertext}<extra></extra>",
  };
}

function measured(curve, which) {
  const series = { series: CURVE };
  const all = curve.map((one) => one[which]);
  return {
    x: curve.map((one) => one.kl_nats.mean), y: all.map((one) => one.mean),
    mode: "lines+markers+text", name: "best-of-n measured",
    text: curve.map((one) => `${one.n}`), textposition: "top left", cliponaxis: false, textfont: { size: 11 },
    line: { color: colour(CURVE), width: 2 }, marker: { color: colour(CURVE), size: 7 },
    error_y: { ...bars([0, 0, 0], series), array: all.map((one) => one.high - one.mean), arrayminus: all.map((one) => one.mean - one.low) },
    hovertext: curve.map((one) => `best-of-${one.n}<br>KL at most ${number(one.kl_nats.mean, 3)} nats<br>${interval(one[which])}`),
    hovertemplate: "%{hovertext}<extra></extra>",
  };
}

function policy(one, which, own) {
  const { kl_nats: kl } = one;
  const value = one[which];
  return {
    x: [kl.mean], y: [value.mean], mode: "markers+text", name: plain(one.name), showlegend: false, cliponaxis: false,
    text: [`${plain(one.name)}`], textposition: "top right", textfont: { color: colour(own.series) },
    marker: { color: colour(own.series), symbol: own.symbol, size: 13, line: { width: 1, color: colour("--surface") } },
    error_x: bars([kl.mean, kl.low, kl.high], own),
    error_y: bars([value.mean, value.low, value.high], own),
    hovertext: [card(one)], hovertemplate: "%{hovertext}<extra></extra>",
  };
}

function served(one, field, own, first) {
  const { kl_nats: kl } = one;
  const value = one[field];
  return {
    x: [kl.mean], y: [value.mean], mode: "markers+text", name: "open marks: live, by load tests", cliponaxis: false,
    legendgroup: "live", showlegend: first, text: [own.labelled ? "" : plain(named(one))], textposition: "bottom right",
    textfont: { size: 11, color: colour(own.series) },
    marker: { color: colour(own.series), symbol: `${own.symbol}-open`, size: 12, line: { width: 2 } },
    error_y: bars([value.mean, value.low, value.high], own),
    hovertext: [
      `${plain(named(one))}, live<br>KL ${kl.kind === "upper bound" ? "at most" : ""} ${number(kl.mean, 3)} nats` +
        `<br>${interval(value)}<br>load test ${plain(one.run)}`,
    ],
    hovertemplate: "%{hovertext}<extra></extra>",
  };
}

/** The card, as the pointer finds it. */
function card(one) {
  const { training, kl_nats: kl } = one;
  const lines = [`${plain(one.name)}`];
  if (training) lines.push(plain(training.description));
  lines.push(`KL ${number(kl.mean, 3)} nats${kl.kind ? ` (${plain(kl.kind)})` : ""}`);
  lines.push(`win rate ${interval(one.win_rate)}`);
  if (one.reward) lines.push(`reward ${interval(one.reward)}`);
  if (one.gold) lines.push(`gold reward ${interval(one.gold)}`);
  if (training?.cost) {
    if (training.cost.steps !== null) lines.push(`${number(training.cost.steps)} steps`);
    lines.push(`trained ${duration(training.cost.training_seconds * training.cost.processes * 1000)}`);
  }
  lines.push(plain(one.policy.revision));
  return lines.join("<br>");
}

function interval({ mean, low, high, count }) {
  return count ? `${number(mean, 3)} [${number(low, 3)}, ${number(high, 3)}]` : number(mean, 3);
}
