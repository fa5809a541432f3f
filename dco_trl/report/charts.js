"use strict";
// Charts as SVG: axes, then what the caller draws, and the values nearest to the pointer. Colours are CSS variables, so
// a chart follows the colour scheme; it is drawn again when its width changes.

const DASHES = ["", "7 4", "9 3 2 3", "2 3"];
const MARKS = [ // around (0, 0)
  "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M-4-4h8v8h-8z", "M0-5L5 4H-5z", "M0-5.5L5.5 0 0 5.5-5.5 0z", "M0 5L5-4H-5z",
  "M-2-5h4v3h3v4h-3v3h-4v-3h-3v-4h3z", "M-4-4L4 4M-4 4L4-4",
];

function shape(tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (["fill", "stroke"].includes(name)) node.style.setProperty(name, value);
    else node.setAttribute(name, value);
  }
  if (text !== undefined) node.textContent = text;
  return node;
}

// A chart's `draw(x, y)` returns SVG elements; x and y turn shares of the axes into pixels. `points` are what the
// pointer can find: `at` on the horizontal axis and lines of text.
function chart(node, { xTicks, yTicks, xLabel, yLabel, legend = [], points, draw }) {
  const redraw = () => {
    const key = element("div", { class: "legend", "aria-hidden": "true" }, ...legend.map(({ name, swatch }) => {
      const svg = shape("svg", { width: 30, height: 12 });
      svg.append(...swatch);
      return element("span", {}, svg, visible(name));
    }));
    const tip = element("div", { class: "tip", hidden: "" });
    node.replaceChildren(key, tip);
    const width = Math.max(node.clientWidth, 200), height = Math.max(node.clientHeight - key.offsetHeight, 120);
    const left = 58, right = width - 24, top = 10, bottom = height - 46;
    const x = (share) => left + share * (right - left), y = (share) => bottom - share * (bottom - top);
    const svg = shape("svg", { width, height });
    const every = Math.ceil((xTicks.length * 48) / (right - left));
    for (const [share, text] of yTicks) {
      svg.append(shape("path", { class: "grid", d: `M${left} ${y(share)}H${right}` }),
        shape("text", { x: left - 7, y: y(share) + 4, "text-anchor": "end" }, text));
    }
    xTicks.forEach(([share, text], i) => {
      svg.append(shape("path", { class: "grid", d: `M${x(share)} ${top}V${bottom}` }));
      if (i % every === 0) svg.append(shape("text", { x: x(share), y: bottom + 18, "text-anchor": "middle" }, text));
    });
    svg.append(shape("path", { class: "frame", d: `M${left} ${top}V${bottom}H${right}` }),
      shape("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle" }, xLabel),
      shape("text", { x: -(top + bottom) / 2, y: 14, "text-anchor": "middle", transform: "rotate(-90)" }, yLabel),
      ...draw(x, y));
    const guide = shape("path", { class: "guide", d: `M0 ${top}V${bottom}`, visibility: "hidden" });
    svg.append(guide);
    svg.addEventListener("pointermove", (event) => {
      const share = (event.clientX - svg.getBoundingClientRect().left - left) / (right - left);
      const point = points.reduce((a, b) => (Math.abs(b.at - share) < Math.abs(a.at - share) ? b : a));
      guide.setAttribute("transform", `translate(${x(point.at)} 0)`);
      guide.setAttribute("visibility", "visible");
      tip.replaceChildren(...point.lines.map((line) => element("div", {}, visible(line))));
      tip.hidden = false;
      tip.style.left = `${Math.max(0, Math.min(x(point.at) + 10, width - tip.offsetWidth))}px`;
      // In the half where the pointer is not.
      const above = event.clientY - svg.getBoundingClientRect().top > (top + bottom) / 2;
      tip.style.top = `${key.offsetHeight + (above ? top : bottom - tip.offsetHeight - 4)}px`;
    });
    svg.addEventListener("pointerleave", () => {
      tip.hidden = true;
      guide.setAttribute("visibility", "hidden");
    });
    node.append(svg);
  };
  new ResizeObserver(redraw).observe(node);
}

const path = (points) => points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
const bar = (x0, x1, y0, y1, fill) =>
  shape("rect", { class: "bin", x: x0, width: Math.max(x1 - x0 - 1, 1), y: Math.min(y0, y1), height: Math.abs(y1 - y0), fill });
const ink = (r) => `var(${runColour(r)})`;

function coverageChart(node, group) {
  const largest = Math.max(2, ...group.runs.flatMap((run) => run.curve.k));
  const at = (k) => 0.02 + 0.96 * (Math.log(k) / Math.log(largest));
  const ticks = [];
  for (let k = 1; k <= largest; k *= largest > 32 ? 4 : 2) ticks.push([at(k), count(k)]);
  const all = [...new Set(group.runs.flatMap((run) => run.curve.k))].sort((a, b) => a - b);
  const interval = (curve, i) => `${percent(curve.estimate[i])} [${percent(curve.low[i])}, ${percent(curve.high[i])}]`;
  const line = (run, k) => {
    const i = run.curve.k.indexOf(k);
    return i >= 0 ? [`${run.name}: ${interval(run.curve, i)}`] : [];
  };
  chart(node, {
    xTicks: ticks, xLabel: "k, attempts per problem",
    yTicks: [0, 0.2, 0.4, 0.6, 0.8, 1].map((share) => [share, `${100 * share} %`]), yLabel: "pass@k",
    legend: group.runs.flatMap((run, r) => [{ name: run.name, swatch: [
      shape("path", { class: "line", d: "M0 6H30", stroke: ink(r), "stroke-dasharray": DASHES[r % 4] }),
      shape("path", { class: "mark", d: MARKS[r % 7], transform: "translate(15 6)", fill: ink(r), stroke: ink(r) })] },
      ...(run.arms.length ? [{ name: `${run.name}: an arm of the schedule, alone`,
        swatch: [shape("path", { class: "arm", d: "M0 6H30", stroke: ink(r) })] }] : [])]),
    points: all.map((k) => ({ at: at(k), lines: [`pass@${count(k)}, 95 % interval`, ...group.runs.flatMap((run) => line(run, k))] })),
    draw: (x, y) => group.runs.flatMap((run, r) => {
      const points = (curve, name) => curve.k.map((k, i) => [x(at(k)), y(curve[name][i])]);
      const measured = (name) => points(run.curve, name);
      const band = (of, opacity) => shape("path", { class: "band", fill: ink(r), opacity,
        d: `${path([...of("low"), ...of("high").reverse()])}Z` });
      const arms = run.arms.map((arm) => shape("path", { class: "arm", stroke: ink(r), d: path(points(arm, "estimate")) }));
      return [band(measured, 0.18), ...arms,
        shape("path", { class: "line", d: path(measured("estimate")), stroke: ink(r), "stroke-dasharray": DASHES[r % 4] }),
        ...measured("estimate").filter((_, i) => group.k.includes(run.curve.k[i])).map(([px, py]) =>
          shape("path", { class: "mark", d: MARKS[r % 7], transform: `translate(${px} ${py})`, fill: ink(r), stroke: ink(r) }))];
    }),
  });
}

const COUNTS = [1, 4, 10, 40, 100, 400, 1000, 4000, 10000];

// Right answers upwards and wrong ones downwards; heights are square roots, so that few are seen beside many.
function confidenceChart(node, run) {
  const { right, wrong } = run.confidence;
  const [up, down] = [right, wrong].map((counts) => 1.04 * Math.sqrt(Math.max(1, ...counts)));
  const height = (value) => (down + Math.sign(value) * Math.sqrt(Math.abs(value))) / (up + down);
  const ticks = (most, sign) => COUNTS.filter((value) => Math.sqrt(value) <= most && Math.sqrt(value) >= 0.15 * (up + down))
    .map((value) => [height(sign * value), count(value)]);
  const bins = right.length;
  const swatch = (fill) => [bar(8, 22, 0, 12, fill)];
  chart(node, {
    xTicks: [0, 0.2, 0.4, 0.6, 0.8, 1].map((share) => [share, `${100 * share} %`]), xLabel: "share of the most frequent answer",
    yTicks: [[height(0), "0"], ...ticks(up, 1), ...ticks(down, -1)], yLabel: "problems",
    legend: [{ name: "right", swatch: swatch("var(--right)") }, { name: "wrong", swatch: swatch("var(--wrong)") }],
    points: right.map((_, i) => ({ at: (i + 0.5) / bins,
      lines: [`share ${(100 * i) / bins} to ${(100 * (i + 1)) / bins} %`, `${count(right[i])} right, ${count(wrong[i])} wrong`] })),
    draw: (x, y) => right.flatMap((_, i) => [[right[i], "var(--right)"], [-wrong[i], "var(--wrong)"]].map(([value, fill]) =>
      bar(x(i / bins), x((i + 1) / bins), y(height(0)), y(height(value)), fill))),
  });
}

function successChart(node, group) {
  const labels = group.success_labels, runs = group.runs.length, bins = labels.length;
  const most = 1.04 * Math.max(1, ...group.runs.flatMap((run) => run.success));
  const step = COUNTS.flatMap((value) => [value, 2 * value, 5 * value]).sort((a, b) => a - b).find((value) => 5 * value >= most);
  const ticks = [];
  for (let value = 0; value <= most; value += step) ticks.push([value / most, count(value)]);
  chart(node, {
    xTicks: labels.map((text, i) => [(i + 0.5) / bins, text]), xLabel: "success rate of a problem, up to",
    yTicks: ticks, yLabel: "problems",
    legend: group.runs.map((run, r) => ({ name: run.name, swatch: [bar(8, 22, 0, 12, ink(r))] })),
    points: labels.map((text, i) => ({ at: (i + 0.5) / bins, lines: [
      i === 0 ? "never solved" : `success rate above ${i > 1 ? labels[i - 1] : "0"}, up to ${text}`,
      ...group.runs.map((run) => `${run.name}: ${count(run.success[i])} problems`)] })),
    draw: (x, y) => group.runs.flatMap((run, r) => run.success.map((value, i) =>
      bar(x((i + 0.1 + (0.8 * r) / runs) / bins), x((i + 0.1 + (0.8 * (r + 1)) / runs) / bins), y(0), y(value / most), ink(r)))),
  });
}
