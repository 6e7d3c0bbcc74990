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

function comparing() {
  return at("compare").getAttribute("aria-pressed") === "true";
}

async function begin() {
  try {
    const models = (await get("/v1/models")).data;
    model = models[0].id;
    chats = models[0].chat;
    if (!chats) at("prompt").placeholder = "Begin a text; it goes on"; // fits a phone
    at("system-section").hidden = !chats;
    at("model").textContent = model;
    document.title = `loragraft ${model}`;
    const adapters = models.slice(1).map(({ id }) => ({ name: id }));
    document.querySelectorAll(".side").forEach((side, index) => {
      sides[index] = new Strengths(side.querySelector(".adapters"), adapters, () => {});
    });
    log.replaceChildren();
  } catch (error) {
    at("key-section").hidden = error.status !== 401;
    log.replaceChildren(made("p", error.message, "error"));
  }
}

function scroll() {
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < 160;
  if (near) log.scrollTop = log.scrollHeight;
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

async function send() {
  const text = at("prompt").value.trim();
  if (!text || running) return;
  at("prompt").value = "";
  grow();
  const turn = log.appendChild(made("div", "", "turn"));
  turn.append(made("div", text, "mine"));
  const talk = said; // a new conversation may begin before this reply ends
  talk.push({ role: "user", content: text });
  const both = comparing();
  const place = log.appendChild(made("div", "", "turn")).appendChild(made("div", "", both ? "replies two" : "replies"));
  running = new AbortController();
  at("send").textContent = "Stop";
  log.scrollTop = log.scrollHeight;
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
  if (a.text) talk.push({ role: "assistant", content: a.text });
  else talk.pop();
  running = null;
  at("send").textContent = "Send";
  scroll();
  at("prompt").focus();
}

function stop() {
  running?.abort();
}

function grow() {
  const box = at("prompt");
  box.rows = Math.min(10, box.value.split("\n").length);
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
at("toggle").addEventListener("click", () => {
  const open = at("settings").classList.toggle("open");
  at("toggle").setAttribute("aria-expanded", String(open));
});
at("key").addEventListener("change", () => {
  setKey(at("key").value);
  begin();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  const keys = { c: toggleCompare, n: renew, d: toggleTheme };
  if (event.altKey && keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});
showTemperature();
begin();
