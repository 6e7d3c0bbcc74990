// The page: settings, the conversation, and the keys.

import { get, setKey } from "./api.js";
import { Strengths } from "./adapters.js";
import { made } from "./markdown.js";
import { Reply, parting } from "./reply.js";

const at = (id) => document.getElementById(id);
const log = at("log");
const sides = [];
let model = "";
let chats = true; // a model without a chat template continues texts
let said = [];
let running = null;
let following = true; // the end of the conversation is in sight, and stays so
let names = "";

function comparing() {
  return at("compare").getAttribute("aria-pressed") === "true";
}

// What went wrong, with a button for another try.
function problem(place, message, again) {
  const shown = place.appendChild(made("p", message, "error"));
  shown.setAttribute("role", "alert");
  const button = made("button", "Try again");
  button.type = "button";
  button.addEventListener("click", again);
  shown.append(" ", button);
}

// The adapters that there are, each at the strength that it had.
function offer(models) {
  const adapters = models.slice(1).map(({ id }) => ({ name: id }));
  const found = JSON.stringify(adapters);
  if (found === names) return;
  names = found;
  document.querySelectorAll(".side").forEach((side, index) => {
    sides[index] = new Strengths(side.querySelector(".adapters"), adapters, sides[index]?.values);
  });
}

// Adapters come and go while the page is open.
async function refresh() {
  try {
    if (names) offer((await get("/v1/models")).data);
  } catch { /* the next message will tell */ }
}

async function begin() {
  try {
    const models = (await get("/v1/models")).data;
    model = models[0].id;
    chats = models[0].chat;
    if (!chats) at("prompt").placeholder = "Begin a text to continue"; // fits a phone
    at("system-section").hidden = !chats;
    at("model").textContent = model;
    document.title = `loragraft ${model}`;
    offer(models);
    log.replaceChildren();
  } catch (error) {
    at("key-section").hidden = error.status !== 401;
    log.replaceChildren();
    if (error.status === 401) reveal();
    problem(log, error.message, begin);
  }
}

function scroll() {
  if (following) log.scrollTop = log.scrollHeight;
}

// Shows the settings on a narrow screen.
function reveal(open = true) {
  at("settings").classList.toggle("open", open);
  at("toggle").setAttribute("aria-expanded", String(open));
}

function request(side) {
  const system = at("system").value.trim();
  const seed = at("seed").value;
  return {
    model,
    ...(chats
      ? { messages: [...(system ? [{ role: "system", content: system }] : []), ...said] }
      : { prompt: said.at(-1).content }),
    temperature: Number(at("temperature").value),
    max_tokens: Number(at("max-tokens").value) || 256,
    lora: sides[side].lora,
    ...(seed === "" ? {} : { seed: Number(seed) }),
  };
}

async function send(text = at("prompt").value.trim()) {
  if (!text || running || !sides.length) return;
  if (text === at("prompt").value.trim()) at("prompt").value = "";
  grow();
  const turn = log.appendChild(made("div", "", "turn"));
  const mine = turn.appendChild(made("article", text, "mine"));
  mine.setAttribute("aria-label", "You");
  const talk = said; // a new conversation may begin before this reply ends
  talk.push({ role: "user", content: text });
  const both = comparing();
  const place = log.appendChild(made("div", "", "turn")).appendChild(made("div", "", both ? "replies two" : "replies"));
  running = new AbortController();
  at("send").textContent = "Stop";
  log.setAttribute("aria-busy", "true"); // it is read out when it is complete
  following = true;
  scroll();
  const replies = (both ? [0, 1] : [0]).map((side) => {
    const reply = new Reply(place, both ? `${"AB"[side]}: ${sides[side].label}` : sides[side].label);
    return { reply, done: reply.run(request(side), running.signal, scroll) };
  });
  await Promise.all(replies.map(({ done }) => done));
  const [a, b] = replies.map(({ reply }) => reply);
  if (b && !a.failed && !b.failed) {
    const [ofA, ofB] = parting(a.tokens, b.tokens);
    if (!ofA.size && !ofB.size) place.append(made("p", "Both are the same, token by token.", "facts"));
    else {
      a.part(ofA);
      b.part(ofB);
    }
  }
  const { failed } = replies.map(({ reply }) => reply).find(({ failed, stopped }) => failed && !stopped) ?? {};
  if (a.text && !failed) talk.push({ role: "assistant", content: a.text });
  else talk.pop();
  running = null;
  at("send").textContent = "Send";
  log.removeAttribute("aria-busy");
  if (failed) {
    problem(place, failed.message, () => {
      turn.remove();
      place.parentElement.remove();
      send(text);
    });
    if (failed.status === 404) refresh();
    if (failed.status === 401) at("key-section").hidden = false;
  }
  scroll();
  const here = document.activeElement;
  const writes = here === document.body || at("composer").contains(here);
  if (writes && !matchMedia("(pointer: coarse)").matches) at("prompt").focus(); // else a keyboard covers the reply
}

function stop() {
  running?.abort();
}

function grow() {
  const box = at("prompt");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
}

function toggleCompare() {
  const on = !comparing();
  at("compare").setAttribute("aria-pressed", String(on));
  document.body.classList.toggle("comparing", on);
  document.querySelector(".side.second").hidden = !on;
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.style.colorScheme
    ? root.style.colorScheme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
  localStorage.setItem("theme", root.style.colorScheme);
}

function renew() {
  stop();
  said = [];
  following = true;
  log.replaceChildren();
  at("prompt").focus();
}

function showTemperature() {
  at("temperature-value").textContent = Number(at("temperature").value).toFixed(2);
}

document.documentElement.style.colorScheme = localStorage.getItem("theme") || "";
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  running ? stop() : send();
});
at("prompt").addEventListener("input", grow);
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    send();
  }
});
at("compare").addEventListener("click", toggleCompare);
at("theme").addEventListener("click", toggleTheme);
at("new").addEventListener("click", renew);
at("temperature").addEventListener("input", showTemperature);
at("toggle").addEventListener("click", () => reveal(!at("settings").classList.contains("open")));
let height = 0;
log.addEventListener("scroll", () => { // also behind what we scroll ourselves, when more has come already
  if (log.scrollHeight - log.scrollTop - log.clientHeight < 40) following = true;
  else if (log.scrollTop < height) following = false;
  height = log.scrollTop;
});
window.addEventListener("focus", refresh);
at("key").addEventListener("change", () => {
  setKey(at("key").value);
  begin();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
    if (at("settings").contains(document.activeElement) && at("toggle").offsetParent) at("toggle").focus();
    reveal(false);
  }
  const keys = { KeyC: toggleCompare, KeyN: renew, KeyD: toggleTheme }; // on a Mac, Alt makes other characters
  if (event.altKey && !event.ctrlKey && !event.metaKey && keys[event.code]) {
    event.preventDefault();
    keys[event.code]();
  }
});
showTemperature();
begin();
