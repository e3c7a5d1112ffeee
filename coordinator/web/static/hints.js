// What the page's owner can do next, each with the command to copy.

import { byId, element, whenChanged } from "/static/dom.js";

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    // no clipboard without HTTPS on other hosts: select the text, so that the keyboard can copy it
    getSelection().selectAllChildren(button.previousElementSibling);
    button.textContent = "selected: press Ctrl-C";
  }
  setTimeout(() => { button.textContent = "copy"; }, 2000);
}

function commandLine(command) {
  const button = element("button", { type: "button", "aria-label": "Copy the command" }, "copy");
  button.addEventListener("click", () => copy(button, command));
  return element("div", { class: "command" }, element("code", { tabindex: 0 }, command), button);
}

function hintCard(hint, fingerprint) {
  const code = hint.shows_code && element("details", {},
    element("summary", {}, "as a QR code"),
    element("img", { class: "qr", src: `/join/${encodeURIComponent(fingerprint)}.svg`, alt: "QR code of the join line", loading: "lazy" }));
  return element("article", { class: `hint ${hint.kind}` },
    element("h3", {}, hint.title), element("p", {}, hint.text),
    hint.command ? commandLine(hint.command) : null, code || null);
}

export const drawHints = whenChanged((hints, fingerprint) => {
  const cards = hints.map((hint) => hintCard(hint, fingerprint));
  byId("hints").replaceChildren(...(cards.length ? cards : [element("p", { class: "quiet" }, "Nothing needs you.")]));
});
