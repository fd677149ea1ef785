// A key presses the button, or follows the link, that names it; the pages work without this file too.
"use strict";

addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  const help = document.querySelector("details");
  if (event.key === "?" && help) help.open = !help.open;
  const key = event.key === "Backspace" ? "b" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const meant = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (!meant) return;
  event.preventDefault();
  meant.click();
});

addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault(); // a second press before the next page is there
  event.target.dataset.sent = "yes";
});

addEventListener("pageshow", () => document.querySelectorAll("form").forEach((form) => delete form.dataset.sent));
