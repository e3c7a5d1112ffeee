// Sets the colours before the first paint, so this one is no module: modules run after it.
"use strict";
{
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {
    // storage may be forbidden; then the system's colours are used
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
