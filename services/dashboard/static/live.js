"use strict";

// Replaces the parts of the page that the server sends. The server has escaped every value in them.
const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("fairlead", { createHTML: (text) => text })
  : { createHTML: (text) => text };
const connection = document.getElementById("connection");
const age = document.getElementById("age");
const waiting = new Map();
let lostAt = null;

function say(text, lost) {
  if (connection.textContent !== text) connection.textContent = text;
  connection.classList.toggle("lost", lost);
}

function isInUse(element) {
  const selection = getSelection();
  return !selection.isCollapsed && selection.containsNode(element, true);
}

// A part whose text is being selected waits, so that it can be copied.
function update() {
  for (const [id, html] of waiting) {
    const element = document.getElementById(id);
    if (element && isInUse(element)) continue;
    if (element) element.innerHTML = policy.createHTML(html);
    waiting.delete(id);
  }
}

const source = new EventSource(`events?after=${encodeURIComponent(document.body.dataset.version)}`);
source.addEventListener("parts", (event) => {
  for (const [id, html] of Object.entries(JSON.parse(event.data))) waiting.set(id, html);
  update();
});
source.addEventListener("reload", () => {
  source.close();
  location.reload();
});
source.addEventListener("open", () => {
  lostAt = null;
  age.textContent = "";
  say("live", false);
});
source.addEventListener("error", () => {
  lostAt ??= Date.now();
  say("no connection", true);
});
document.addEventListener("selectionchange", update);
setInterval(() => {
  if (lostAt !== null) age.textContent = `as of ${Math.round((Date.now() - lostAt) / 1000)} s ago`;
}, 1000);
