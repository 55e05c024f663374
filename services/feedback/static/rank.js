// Keys, drafts and leases for the page of a task. Everything works without it, by plain forms.
"use strict";

const main = document.querySelector("main");
const form = document.getElementById("task");
const answers = [...document.querySelectorAll("article[data-place]")];
const isNew = "lease" in main.dataset;
const SAVE_AFTER_MS = 1200;
const IDLE_MS = 60_000;

// --- Time in use: counted while the page is visible and somebody does something.
let seconds = 0;
let lastUse = Date.now();
let lastRenewed = Date.now();
for (const kind of ["pointerdown", "keydown", "input", "wheel", "touchmove"]) {
  addEventListener(kind, () => { lastUse = Date.now(); }, { passive: true });
}
setInterval(() => {
  if (document.hidden || Date.now() - lastUse > IDLE_MS) return;
  seconds += 1;
  document.getElementById("seconds").value = seconds;
  // A third of a lease is early enough: two renewals may fail.
  if (isNew && Date.now() - lastRenewed > (1000 * Number(main.dataset.lease)) / 3) renew();
}, 1000);

async function send(path, body) {
  const headers = { "content-type": "application/json" };
  return fetch(`${main.dataset.api}/assignments/${main.dataset.assignment}/${path}`, { method: "PUT", headers, body });
}

async function renew() {
  lastRenewed = Date.now();
  const response = await send("lease").catch(() => null);
  if (response?.status === 409) say("Your time for this task is over. You can still hand it in.");
}

// --- Drafts
const saved = document.getElementById("saved");
let timer;
let sent = false;

function say(text) {
  if (saved) saved.textContent = text;
}

function draft() {
  const fields = {};
  for (const [name, value] of new FormData(form)) {
    if (["request", "opened", "seconds"].includes(name)) continue;
    (fields[name] ??= []).push(value);
  }
  return JSON.stringify({ fields });
}

async function save() {
  if (sent) return;
  try {
    const response = await send("draft", draft());
    say(response.ok ? "Draft saved" : "The draft is not saved");
  } catch {
    say("No connection: the draft is not saved");
  }
}

function touched() {
  count();
  if (!isNew) return;
  say("");
  clearTimeout(timer);
  timer = setTimeout(save, SAVE_AFTER_MS);
}

form.addEventListener("input", touched);
form.addEventListener("submit", (event) => {
  clearTimeout(timer);
  // A second click must not send it again.
  if (sent) event.preventDefault();
  sent = true;
});
addEventListener("pageshow", () => { sent = false; });

function count() {
  const text = document.getElementById("text");
  const length = document.getElementById("length");
  if (!text || !length) return;
  const words = text.value.trim().split(/\s+/).filter(Boolean).length;
  length.hidden = false;
  length.textContent = `${words} words, ${text.value.length} characters`;
}
count();

// --- Differences between two answers
const compare = document.getElementById("compare");
const marks = { same: "span", removed: "del", added: "ins" };

async function showDifference(event) {
  event.preventDefault();
  const asked = new URLSearchParams(new FormData(compare));
  const response = await fetch(`${main.dataset.comparison}?${asked}`).catch(() => null);
  const place = document.getElementById("difference");
  place.replaceChildren();
  if (!response?.ok) place.textContent = "The server does not answer.";
  else {
    const { parts } = await response.json();
    if (!parts) place.textContent = "These answers are too long to compare word by word.";
    for (const [kind, text] of parts ?? []) {
      const piece = document.createElement(marks[kind]);
      piece.textContent = text;
      place.append(piece);
    }
  }
  place.hidden = false;
  place.focus();
}
compare?.addEventListener("submit", showDifference);

// --- Keys
const keys = document.getElementById("keys");
const useKeys = document.getElementById("use-keys");
useKeys.checked = localStorage.getItem("keys") !== "off";
useKeys.addEventListener("change", () => localStorage.setItem("keys", useKeys.checked ? "on" : "off"));
for (const hidden of document.querySelectorAll(".script-only:not(#length)")) hidden.hidden = false;
document.getElementById("show-keys").addEventListener("click", () => keys.showModal());

let current = 0;

function go(place) {
  if (!answers.length) return;
  current = Math.min(Math.max(place, 0), answers.length - 1);
  answers[current].focus();
  // A long answer fills the window: its places must be seen too.
  answers[current].querySelector(".place")?.scrollIntoView({ block: "nearest" });
}

for (const [place, answer] of answers.entries()) {
  answer.addEventListener("focusin", () => { current = place; });
}

function choose(name, value) {
  const input = form.querySelector(`input[name="${name}"][value="${value}"]`);
  if (!input) return false;
  input.checked = true;
  touched();
  return true;
}

function place(rank) {
  if (!answers.length || !choose(`place-${answers[current].dataset.place}`, rank)) return false;
  const open = answers.findIndex((answer) => !form.querySelector(`input[name="place-${answer.dataset.place}"]:checked`));
  const following = current + 1 < answers.length ? current + 1 : open;
  go(following < 0 ? current : following);
  return true;
}

const actions = {
  "?": () => keys.showModal(),
  g: () => {
    const guideline = document.getElementById("guideline");
    if (!guideline) return;
    guideline.open = !guideline.open;
    guideline.querySelector("summary").focus();
  },
  r: () => document.getElementById("raw")?.click(),
  d: () => document.getElementById("first")?.focus(),
  t: () => document.getElementById("note").focus(),
  s: () => document.querySelector("#skip input[type=radio]")?.focus(),
  n: () => go(current + 1),
  p: () => go(current - 1),
  ArrowRight: () => go(current + 1),
  ArrowLeft: () => go(current - 1),
};
if (form.dataset.kind === "pair") {
  actions.a = () => choose("verdict", "1");
  actions.b = () => choose("verdict", "2");
  actions.e = () => choose("verdict", "tie");
}

function isTyping(target) {
  return target.matches("textarea, select, input:not([type=radio], [type=checkbox])");
}

addEventListener("keydown", (event) => {
  if (keys.open || event.defaultPrevented || event.isComposing || event.altKey || event.metaKey) return;
  const target = event.target;
  const hand = form.querySelector("button.primary");
  if (event.key === "Enter" && event.ctrlKey) {
    event.preventDefault();
    form.requestSubmit(hand);
    return;
  }
  if (event.ctrlKey || isTyping(target) || !useKeys.checked) return;
  const inRadios = target.matches("input[type=radio]");
  if (inRadios && event.key.startsWith("Arrow")) return;
  if (event.key === "Enter") {
    // Links, buttons and other forms keep their own meaning of Enter.
    if (target.closest("a, button, summary, form:not(#task)")) return;
    event.preventDefault();
    form.requestSubmit(hand);
  } else if (/^[1-9]$/.test(event.key) && form.dataset.kind === "rank") {
    if (place(event.key)) event.preventDefault();
  } else if (Object.hasOwn(actions, event.key)) {
    event.preventDefault();
    actions[event.key]();
  }
});

const missing = document.getElementById("missing");
if (missing) missing.focus();
