// The loss curves: uPlot over two series that have steps of their own.
/* global uPlot */

import { byId } from "/static/dom.js";
import { loss } from "/static/format.js";

let plot = null;
let latest = null;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function joined({ training, held_out }) {
  const steps = [...new Set([...training, ...held_out].map(([step]) => step))].sort((a, b) => a - b);
  const column = (points) => {
    const at = new Map(points);
    return steps.map((step) => at.get(step) ?? null);
  };
  return [steps, column(training), column(held_out)];
}

function options(width, height) {
  const font = "12px system-ui, sans-serif";
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false }, font };
  const line = (label, name, points) => ({
    label, stroke: colour(name), width: 2, spanGaps: true, points, value: (_, value) => loss(value),
  });
  return {
    width, height,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false } },
    scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) } },
    axes: [
      { ...axis, size: 30, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5] },
      { ...axis, size: 46 },
    ],
    series: [{ label: "step" }, line("training", "--training", { show: false }),
      line("held out", "--held-out", { show: true, size: 7, fill: colour("--held-out") })],
    hooks: { setCursor: [showValues] },
  };
}

// Under the pointer the legend shows the values there, elsewhere the latest.
function showValues(shown) {
  if (latest === null) return;
  const index = shown?.cursor?.idx;
  const at = (column) => (index == null ? null : shown.data[column][index]);
  byId("loss-training").textContent = loss(at(1) ?? latest.loss ?? latest.training.at(-1)?.[1]);
  byId("loss-held-out").textContent = loss(at(2) ?? latest.held_out_loss ?? latest.held_out.at(-1)?.[1]);
}

function described({ training, held_out }) {
  if (!training.length && !held_out.length) return "No loss yet";
  const told = (name, points) => {
    if (!points.length) return `${name}: none yet.`;
    const [[first, from], [last, to]] = [points[0], points.at(-1)];
    return `${name}: from ${loss(from)} at step ${first} to ${loss(to)} at step ${last}.`;
  };
  return `${told("Training loss", training)} ${told("Held-out loss", held_out)}`;
}

export function drawChart(run) {
  latest = run;
  const box = byId("chart");
  box.setAttribute("aria-label", described(run));
  if (plot === null) {
    plot = new uPlot(options(box.clientWidth, box.clientHeight), joined(run), box);
  } else {
    plot.setData(joined(run));
  }
  showValues(plot);
}

export function redrawChart() {
  plot?.destroy();
  plot = null;
  if (latest !== null) drawChart(latest);
}

new ResizeObserver(([{ contentRect }]) => {
  plot?.setSize({ width: Math.floor(contentRect.width), height: Math.floor(contentRect.height) });
}).observe(byId("chart"));
