// Receives snapshots as server-sent events and hands them to the parts of the page.

import { drawChart, redrawChart } from "/static/chart.js";
import { byId, element, foreign, setText, whenChanged } from "/static/dom.js";
import * as format from "/static/format.js";
import { drawHints } from "/static/hints.js";
import { drawPeers } from "/static/peers.js";
import { drawRounds } from "/static/rounds.js";

let snapshot = { runs: [] };
let chosen = null;

const drawRuns = whenChanged((runs, shown) => {
  byId("runs").hidden = runs.length < 2;
  byId("runs").replaceChildren(...runs.map(({ fingerprint, name }) => {
    const button = element("button", { type: "button", "aria-pressed": String(fingerprint === shown) }, foreign(name || fingerprint.slice(0, 8)));
    button.addEventListener("click", () => { chosen = fingerprint; draw(); });
    return button;
  }));
});

function figure(title, value, note, share) {
  const bar = share == null ? null : element("progress", { max: 1, value: Math.min(1, share), "aria-label": title });
  return element("div", {}, element("dt", {}, title), element("dd", {}, element("b", {}, value), bar,
    note ? element("small", {}, note) : null));
}

const drawFigures = whenChanged((run) => {
  const before = run.held_out_loss_before;
  const here = run.peers.filter(({ mark }) => mark !== "left").length;
  byId("figures").replaceChildren(
    figure("step", format.count(run.version), `of ${format.count(run.max_steps)}`, run.max_steps ? run.version / run.max_steps : 0),
    figure("next round", run.target_tokens ? format.percent(run.tokens_towards_next / run.target_tokens) : "–",
      `of ${format.count(run.target_tokens)} tokens`, run.target_tokens ? run.tokens_towards_next / run.target_tokens : 0),
    figure("tokens/s", format.count(run.tokens_per_s), here > 1 ? `${here} peers together` : "alone"),
    figure("training loss", format.loss(run.loss)),
    figure("held-out loss", format.loss(run.held_out_loss), before == null ? null : `at first ${format.loss(before)}`),
    figure("time left", format.duration(run.seconds_left), "at this pace"));
});

function draw() {
  const run = snapshot.runs.find(({ fingerprint }) => fingerprint === chosen) ?? snapshot.runs[0];
  if (!run) {
    setText("name", "No run yet");
    setText("about", "found one with potluck start RECIPE --coordinator ADDRESS");
    return;
  }
  drawRuns(snapshot.runs.map(({ fingerprint, name }) => ({ fingerprint, name })), run.fingerprint);
  setText("name", run.name || "a run without a name");
  setText("about", [run.base_model, run.state, run.coordinator, run.fingerprint.slice(0, 12)].filter(Boolean).join(" · "));
  drawFigures({ ...run, training: null, held_out: null, rounds: null, hints: null });
  drawChart(run);
  drawHints(run.hints, run.fingerprint);
  drawPeers({ num_stages: run.num_stages, num_layers: run.num_layers, peers: run.peers });
  drawRounds(run.rounds);
}

function say(state, text) {
  byId("line").dataset.state = state;
  setText("line", text);
}

function listen() {
  const source = new EventSource("/changes");
  source.addEventListener("open", () => say("live", "live"));
  source.addEventListener("message", ({ data }) => {
    snapshot = JSON.parse(data);
    say("live", "live");
    draw();
  });
  source.addEventListener("error", () => {
    say("lost", "no connection: this is the last that was seen");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

const themes = { system: "◐", light: "○", dark: "●" };
function setTheme(theme) {
  const root = document.documentElement;
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  try {
    localStorage.setItem("theme", theme);
  } catch {
    // storage may be forbidden; the choice then lasts as long as the page
  }
  byId("theme").textContent = themes[theme];
  byId("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  redrawChart();
}
byId("theme").addEventListener("click", () => {
  const names = Object.keys(themes);
  const now = document.documentElement.dataset.theme ?? "system";
  setTheme(names[(names.indexOf(now) + 1) % names.length]);
});
setTheme(document.documentElement.dataset.theme ?? "system");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawChart);
listen();
