// Peers by stages: who holds which layers, who is slow, who left, and what each gave.

import { byId, element, foreign, setText, table, whenChanged } from "/static/dom.js";
import * as format from "/static/format.js";

const isHere = (peer) => peer.mark !== "left";
const holds = (peer, stage) => peer.first_stage <= stage && stage < peer.stop_stage;

// This node first, those who left last; the others stay in the order of their ids, which never changes.
const order = (a, b) => b.is_me - a.is_me || isHere(b) - isHere(a);

// One cell spans the stages of a holder, so that a grid of hundreds of stages stays small.
function stageCells(peer, run) {
  const stop = Math.min(peer.stop_stage, run.num_stages);
  const first = Math.min(peer.first_stage, stop);
  const empty = (span) => (span > 0 ? element("td", { colspan: span, class: "stage" }) : null);
  if (stop <= first) {
    const why = peer.drives ? "trains through others" : "holds nothing yet";
    return [element("td", { colspan: run.num_stages, class: "stage none" }, why)];
  }
  const layers = peer.stop_layer > peer.first_layer ? format.range(peer.first_layer, peer.stop_layer) : "";
  const label = `layers ${layers || "unknown"}, stages ${format.range(first, stop)}`;
  const block = element("span", { class: `block ${peer.mark} ${peer.is_me ? "me" : ""}`, title: label },
    element("span", { class: "hidden" }, "layers "), layers);
  return [empty(first), element("td", { colspan: stop - first, class: "stage" }, block), empty(run.num_stages - stop)];
}

function peerRow(peer, run) {
  const badge = (text, kind) => element("span", { class: `badge ${kind}` }, text);
  const state = peer.mark === "left" ? badge("left", "left") : badge(peer.state, peer.state === "training" ? "good" : "");
  const lends = !peer.drives && peer.mark !== "left" ? badge("lends", "") : null;
  const slow = peer.mark === "slow" ? badge("slow", "slow") : null;
  const share = element("span", { class: "share", title: `${format.count(peer.tokens_given)} tokens` },
    element("meter", { min: 0, max: 1, value: peer.share, "aria-label": "share of all tokens" }),
    format.percent(peer.share));
  const number = (text) => element("td", { class: "number" }, text);
  return element("tr", { class: peer.mark },
    element("th", { scope: "row" }, foreign(peer.name || "no name"),
      peer.is_me ? element("span", { class: "quiet" }, " this node") : element("span", { class: "quiet", title: peer.id }, ` …${peer.id.slice(-6)}`)),
    element("td", {}, state, lends, slow),
    ...stageCells(peer, run),
    number(isHere(peer) && peer.drives ? format.count(peer.tokens_per_s) : "–"),
    element("td", { class: "number" }, share),
    number(format.loss(peer.loss)),
    number(format.count(peer.version)),
    number(peer.is_me ? "now" : format.duration(peer.heard_s_ago)));
}

function holderRow(run) {
  const cells = [];
  const here = run.peers.filter(isHere);
  const holders = Array.from({ length: run.num_stages }, (_, stage) => here.filter((peer) => holds(peer, stage)).length);
  for (let stage = 0; stage < run.num_stages;) {
    let stop = stage + 1;
    while (stop < run.num_stages && holders[stop] === holders[stage]) stop += 1;
    const none = holders[stage] === 0;
    const label = `stages ${format.range(stage, stop)}: ${none ? "nobody" : `${holders[stage]} holders`}`;
    cells.push(element("td", { colspan: stop - stage, class: `stage holders ${none ? "missing" : ""}`, title: label },
      none ? "nobody" : `× ${holders[stage]}`));
    stage = stop;
  }
  return element("tr", { class: "sum" }, element("th", { scope: "row" }, "holders"), element("td", {}), ...cells,
    element("td", { colspan: 5 }));
}

// Equally wide whatever stands in them: with spanning cells alone a browser shares the room out unevenly.
function stageColumns(count) {
  const columns = Array.from({ length: count }, () => element("col"));
  for (const column of columns) column.style.width = `${Math.max(6, 256 / count)}px`;
  return element("colgroup", {}, element("col"), element("col"), ...columns);
}

export const drawPeers = whenChanged((run) => {
  const stages = element("th", { scope: "colgroup", colspan: run.num_stages, class: "stages" },
    run.num_stages > 1 ? `stages 0–${run.num_stages - 1}` : "layers");
  const made = table("Each peer with the layers that it holds, its speed and its share", [
    { title: "peer" }, { title: "state" }, { title: "stages" },
    { title: "tokens/s", kind: "number" }, { title: "share", kind: "number" }, { title: "loss", kind: "number" },
    { title: "step", kind: "number" }, { title: "heard", kind: "number" },
  ], [...run.peers.toSorted(order).map((peer) => peerRow(peer, run)), holderRow(run)], "peers");
  made.querySelectorAll("thead th")[2].replaceWith(stages);
  made.querySelector("caption").after(stageColumns(run.num_stages));
  byId("peers").replaceChildren(made);
  const here = run.peers.filter(isHere).length;
  const left = run.peers.length - here;
  const layers = run.num_layers ? `${run.num_layers} layers${run.num_stages > 1 ? ` in ${run.num_stages} stages` : ""}` : "";
  setText("peers-note", [`${here} here`, left ? `${left} left` : "", layers].filter(Boolean).join(" · "));
});
