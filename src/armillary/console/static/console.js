// What is nicer with a script: marking the line of a legend's entry, and choosing all runs of a page. Nothing needs it.
"use strict";
document.addEventListener("pointerover", (event) => mark(event.target, true));
document.addEventListener("pointerout", (event) => mark(event.target, false));
document.addEventListener("focusin", (event) => mark(event.target, true));
document.addEventListener("focusout", (event) => mark(event.target, false));

function mark(target, on) {
  const entry = target.closest && target.closest("[data-line]");
  if (!entry) return;
  const chart = document.querySelector("svg.chart");
  if (!chart) return;
  chart.classList.toggle("has-on", on);
  for (const line of chart.querySelectorAll(".line")) {
    const title = line.querySelector("title");
    line.classList.toggle("on", on && title !== null && title.textContent === entry.dataset.line);
  }
}

document.addEventListener("change", (event) => {
  const all = event.target;
  if (!all.matches || !all.matches("[data-all]")) return;
  for (const box of document.querySelectorAll(`input[name="${CSS.escape(all.dataset.all)}"]`)) box.checked = all.checked;
});

// A page that is replaced while a box is chosen would lose the choice: wait until it is not.
document.addEventListener("htmx:beforeRequest", (event) => {
  const live = document.getElementById("live");
  const busy = live && (live.querySelector("input:checked:not([data-keep])") || live.querySelector("details[open]"));
  if (event.target.id === "live" && busy) event.preventDefault();
});

// A page whose server is gone says so until the server answers again.
const stale = (on) => () => { document.getElementById("stale").hidden = !on; };
document.addEventListener("htmx:sendError", stale(true));
document.addEventListener("htmx:timeout", stale(true));
document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) stale(false)(); });

// An answer without the live part is another page, such as the one that asks for the token: load it.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.id !== "live" || event.detail.serverResponse.includes('id="live"')) return;
  event.detail.shouldSwap = false;
  location.reload();
});
