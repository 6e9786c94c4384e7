// The page: what was said, the answer that is coming, and the settings it is asked with.

import { Refused, answer, models } from "./client.js";
import { show } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const question = $("question");
const options = $("options");

/** `messages`: {role, text, reasoning, note, error}; the last one grows while `running`. */
const state = { messages: [], running: null, windows: new Map(), used: 0, key: "" };

/* ---- what is kept: the conversation as long as the tab is open, settings for good ---- */

function keep(storage, name, value) {
  try {
    storage().setItem(`sterna.${name}`, JSON.stringify(value));
  } catch {
    // No storage, or it is full: the page works without.
  }
}

function kept(storage, name) {
  try {
    return JSON.parse(storage().getItem(`sterna.${name}`));
  } catch {
    return null;
  }
}

const tab = () => sessionStorage;
const always = () => localStorage;

function keepConversation() {
  keep(tab, "conversation", { messages: state.messages, used: state.used });
}

function keepSettings() {
  const values = Object.fromEntries(fields().map((field) => [field.name, field.value]));
  keep(always, "settings", { values, system: $("system").value, theme: $("theme").value });
}

function recall() {
  const settings = kept(always, "settings");
  for (const field of fields()) field.value = settings?.values?.[field.name] ?? "";
  $("system").value = settings?.system ?? "";
  $("theme").value = settings?.theme ?? "";
  dress();
  const conversation = kept(tab, "conversation");
  if (Array.isArray(conversation?.messages)) {
    state.messages = conversation.messages;
    state.used = conversation.used ?? 0;
  }
  state.key = kept(tab, "key") ?? "";
}

/* ---- asking ---- */

function fields() {
  return [...options.querySelectorAll("input[name]")];
}

/** The sampling options that were set; null: one of them makes no sense, and the page says so. */
function sampling() {
  if (!options.checkValidity()) {
    openSettings(true);
    options.reportValidity();
    return null;
  }
  const given = fields().filter((field) => field.value !== "");
  return Object.fromEntries(
    given.map((field) => [field.name, field.type === "number" ? field.valueAsNumber : field.value]),
  );
}

function request(given) {
  const system = $("system").value.trim();
  const opening = system ? [{ role: "system", content: system }] : [];
  const said = state.messages.map(({ role, text }) => ({ role, content: text }));
  return { model: $("model").value, messages: [...opening, ...said], ...given };
}

/** Ask for an answer to the conversation as it stands, which ends with a question. */
async function run() {
  const given = sampling();
  if (given === null || state.running) return;
  const asked = request(given);
  const message = { role: "assistant", text: "", reasoning: "", note: "", error: "" };
  state.messages.push(message);
  state.running = new AbortController();
  const view = append(message, state.messages.length - 1);
  busy(true);
  try {
    await receive(asked, message, view);
  } catch (error) {
    await failed(error, message);
  }
  state.running = null;
  if (!message.text && !message.reasoning && !message.error) state.messages.pop();
  keepConversation();
  busy(false);
  draw();
}

async function receive(asked, message, view) {
  const began = performance.now();
  let first = 0;
  let pieces = 0;
  let last = null;
  for await (const piece of answer(asked, state.key, state.running.signal)) {
    message.text += piece.text;
    message.reasoning += piece.reasoning;
    if (piece.text || piece.reasoning) {
      first ||= performance.now();
      pieces++;
      const seconds = (performance.now() - first) / 1000;
      view.status = seconds > 0.5 ? `${((pieces - 1) / seconds).toFixed(0)} tokens/s` : "";
      view.refresh();
    }
    message.finish = piece.finish ?? message.finish;
    if (piece.usage) last = piece;
  }
  if (last) {
    state.used = last.usage.total_tokens;
    message.note = remark(message, last, { began, first, end: performance.now() });
  }
}

/** The line below an answer: its length and speed, and why it ended if not by itself. */
function remark(message, { usage, timings }, { began, first, end }) {
  const measured = (1000 * (usage.completion_tokens - 1)) / Math.max(1, end - first);
  const rate = timings?.decode_tokens_per_s ?? measured;
  const wait = timings?.time_to_first_token_s ?? (first - began) / 1000;
  const parts = [
    `${usage.completion_tokens} tokens`,
    `${rate.toFixed(1)} tokens/s`,
    `first after ${wait < 1 ? `${(1000 * wait).toFixed(0)} ms` : `${wait.toFixed(2)} s`}`,
  ];
  const thought = usage.completion_tokens_details?.reasoning_tokens;
  if (thought) parts.splice(1, 0, `${thought} of them thinking`);
  const cached = usage.prompt_tokens_details?.cached_tokens;
  if (cached !== undefined) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens reused`);
  if (message.finish === "length") {
    const full = state.windows.get($("model").value) === usage.total_tokens;
    parts.push(full ? "the context window is full" : "cut off at max tokens");
  }
  return parts.join(" · ");
}

async function failed(error, message) {
  if (error.name === "AbortError") {
    message.note = "stopped";
    return;
  }
  message.error = error instanceof Refused ? error.message : `the page made a mistake: ${error}`;
  if (error.status === 401) await login(error.message);
}

function send() {
  const text = question.value.trim();
  if (!text || state.running) return;
  dropFailed();
  state.messages.push({ role: "user", text });
  question.value = "";
  grow();
  draw();
  toLatest();
  run();
}

/** An answer that failed with nothing to show is no part of what is said to the model. */
function dropFailed() {
  const last = state.messages.at(-1);
  if (last?.error) {
    state.messages.pop();
    if (!last.text && state.messages.at(-1)?.role === "user") state.messages.pop();
  }
}

function regenerate() {
  if (state.running || !state.messages.length) return;
  if (state.messages.at(-1).role === "assistant") state.messages.pop();
  draw();
  run();
}

/** Take the conversation back to before a question, which can then be written anew. */
function edit(index) {
  if (state.running) return;
  question.value = state.messages[index].text;
  state.messages.length = index;
  state.used = 0;
  keepConversation();
  draw();
  grow();
  question.focus();
}

function stop() {
  state.running?.abort();
}

function startAnew() {
  stop();
  state.messages = [];
  state.used = 0;
  keepConversation();
  draw();
  question.focus();
}

/* ---- showing ---- */

/** An element with classes, and text or children. */
function make(tag, className, content = "") {
  const made = document.createElement(tag);
  made.className = className;
  if (Array.isArray(content)) made.append(...content);
  else made.textContent = content;
  return made;
}

function button(text, action, title = "") {
  const made = make("button", "quiet", text);
  made.type = "button";
  made.title = title;
  made.addEventListener("click", action);
  return made;
}

/** Everything anew: the conversation, the meter. */
function draw() {
  log.replaceChildren($("empty") ?? empty);
  empty.hidden = state.messages.length > 0;
  state.messages.forEach(append);
  meter();
}

/** Show a message at the end. Its `refresh` shows what was added to it, at the next frame. */
function append(message, index) {
  empty.hidden = true;
  const view = message.role === "user" ? asked(message, index) : answered(message, index);
  log.append(view.element);
  if (atEnd) toLatest();
  return view;
}

function asked(message, index) {
  const text = make("div", "text", message.text);
  const actions = make("div", "actions", [button("Edit", () => edit(index))]);
  return { element: make("article", "user", [heading("You"), text, actions]) };
}

function answered(message, index) {
  const thinking = make("details", "reasoning", [make("summary", "", "Reasoning")]);
  const thoughts = make("div", "thoughts");
  thinking.append(thoughts);
  const text = make("div", "text markdown");
  const foot = make("footer", "");
  const element = make("article", "assistant", [heading("Answer"), thinking, text, foot]);
  const view = { element, status: "", refresh: () => (pending ||= requestAnimationFrame(paint)) };
  let pending = 0;
  const paint = () => {
    pending = 0;
    if (thoughts.textContent !== message.reasoning) thoughts.textContent = message.reasoning;
    thinking.hidden = !message.reasoning;
    show(text, message.text);
    foot.replaceChildren(...below(message, index, view.status));
    if (atEnd) toLatest();
  };
  if (state.running && index === state.messages.length - 1) thinking.open = true;
  paint();
  return view;
}

function heading(text) {
  return make("h2", "hidden", text);
}

function below(message, index, status) {
  const last = index === state.messages.length - 1;
  if (last && state.running) {
    return [make("span", "dots", ""), make("span", "note", status)];
  }
  const parts = [];
  if (message.error) {
    const alert = make("span", "error", message.error);
    alert.setAttribute("role", "alert");
    parts.push(alert);
  }
  if (message.note) parts.push(make("span", "note", message.note));
  if (message.text) parts.push(copier(message));
  if (last) {
    const label = message.error ? "Try again" : "Regenerate";
    parts.push(button(label, regenerate, "Write this answer again (Alt+R)"));
  }
  return parts;
}

function copier(message) {
  const made = button("Copy", () => copy(made, message.text));
  return made;
}

async function copy(from, text) {
  let told = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    told = "Not allowed";
  }
  from.textContent = told;
  setTimeout(() => (from.textContent = "Copy"), 1500);
}

function meter() {
  const window = state.windows.get($("model").value) ?? 0;
  $("context").hidden = !window || !state.used;
  $("meter").value = window ? state.used / window : 0;
  $("used").textContent = `${state.used.toLocaleString()} of ${window.toLocaleString()} tokens`;
}

function busy(running) {
  $("send").hidden = running;
  $("stop").hidden = !running;
  log.setAttribute("aria-busy", String(running));
  document.title = running ? "… Sterna" : "Sterna";
}

/* ---- the end of the log is in sight, unless one scrolled up ---- */

const empty = $("empty");
let atEnd = true;

function toLatest() {
  log.scrollTop = log.scrollHeight;
}

function scrolled() {
  atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  $("latest").hidden = atEnd;
}

/* ---- settings, models, key ---- */

function openSettings(open) {
  $("settings").hidden = !open;
  $("toggle").setAttribute("aria-expanded", String(open));
}

function dress() {
  document.documentElement.dataset.theme = $("theme").value;
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

async function listModels() {
  try {
    const found = await models(state.key);
    state.windows = new Map(found.map(({ id, max_model_len }) => [id, max_model_len]));
    $("model").replaceChildren(...found.map(({ id }) => new Option(id, id)));
    $("model").disabled = found.length < 2;
    const wanted = kept(always, "model");
    if (state.windows.has(wanted)) $("model").value = wanted;
    meter();
  } catch (error) {
    if (error.status === 401 && (await login(error.message))) return listModels();
    $("model").replaceChildren(new Option("no models"));
    notice(error.message);
  }
}

function notice(text) {
  const alert = make("p", "error", text);
  alert.setAttribute("role", "alert");
  empty.append(alert);
}

/** Ask for a key; whether one was given. */
function login(why) {
  const dialog = $("login");
  $("login-why").textContent = why;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "key" && $("key").value;
        if (given) {
          state.key = given;
          keep(tab, "key", given);
        }
        $("key").value = "";
        resolve(Boolean(given));
      },
      { once: true },
    );
  });
}

/* ---- keys and clicks ---- */

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

question.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !question.value) {
    const last = state.messages.findLastIndex(({ role }) => role === "user");
    if (last >= 0 && !state.running) {
      event.preventDefault();
      edit(last);
    }
  }
});

const SHORTCUTS = { KeyN: startAnew, KeyR: regenerate, KeyS: () => openSettings($("settings").hidden) };

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.running) stop();
  const shortcut = event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code];
  if (shortcut) {
    event.preventDefault();
    shortcut();
  }
});

log.addEventListener("click", (event) => {
  const from = event.target.closest("[data-copies]");
  if (from) copy(from, from.closest("figure").querySelector("code").textContent);
});

question.addEventListener("input", grow);
log.addEventListener("scroll", scrolled);
options.addEventListener("input", keepSettings);
options.addEventListener("submit", (event) => event.preventDefault());
$("theme").addEventListener("change", dress);
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", startAnew);
$("latest").addEventListener("click", toLatest);
$("toggle").addEventListener("click", () => openSettings($("settings").hidden));
$("model").addEventListener("change", () => {
  keep(always, "model", $("model").value);
  meter();
});
$("defaults").addEventListener("click", () => {
  for (const field of fields()) field.value = "";
  keepSettings();
});
$("cancel").addEventListener("click", () => $("login").close());
$("login").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("login").close("key");
});

recall();
draw();
toLatest();
listModels();
