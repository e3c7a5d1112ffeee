// The averaging rounds, the latest first.

import { byId, element, setText, table, whenChanged } from "/static/dom.js";
import * as format from "/static/format.js";

function roundRow(round) {
  const dropped = round.status === "dropped";
  const number = (text) => element("td", { class: "number" }, text);
  return element("tr", {},
    element("th", { scope: "row" }, format.count(round.version + 1)),
    element("td", {}, element("span", { class: `badge ${dropped ? "slow" : "good"}` }, round.status)),
    number(format.count(round.members)),
    number(format.count(round.tokens)),
    number(format.duration(round.seconds)),
    number(format.bytes(round.bytes_sent)),
    element("td", { class: "reason" }, element("bdi", { title: round.reason }, round.reason)));
}

export const drawRounds = whenChanged((rounds) => {
  if (!rounds.length) {
    byId("rounds").replaceChildren(element("p", { class: "quiet" }, "None yet."));
    setText("rounds-note", "");
    return;
  }
  const columns = ["for step", "status", "members", "tokens", "took", "sent", "why"];
  byId("rounds").replaceChildren(table("Averaging rounds, the latest first", columns.map((title, index) =>
    ({ title, kind: [0, 1, 6].includes(index) ? "" : "number" })), rounds.toReversed().map(roundRow), "rounds"));
  const dropped = rounds.filter((round) => round.status === "dropped").length;
  setText("rounds-note", `the latest ${rounds.length}${dropped ? ` · ${dropped} dropped, nothing lost` : ""}`);
});
