// Small helpers. Texts of others only ever become text nodes, so no name can become markup.

export const byId = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// A name of somebody else's: isolated, so that it cannot turn the direction of what stands beside it.
export const foreign = (text, kind = "name") => element("bdi", { class: kind, title: text }, text);

export function setText(id, text) {
  const target = byId(id);
  if (target.textContent !== text) target.textContent = text;
}

// Draw a part only when what it shows has changed: focus, selection and scroll positions stay.
export function whenChanged(draw) {
  let before;
  return (...shown) => {
    const now = JSON.stringify(shown);
    if (now === before) return;
    before = now;
    draw(...shown);
  };
}

export function table(caption, columns, rows, name) {
  const head = element("tr", {}, ...columns.map(({ title, kind, label }) =>
    element("th", { scope: "col", class: kind, "aria-label": label }, title)));
  return element("table", { class: name },
    element("caption", { class: "hidden" }, caption),
    element("thead", {}, head),
    element("tbody", {}, ...rows));
}
