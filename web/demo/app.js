// The page: choose a model, load it into this browser, talk to it.

import { deleteModelInCache, listCachedModels, modelNeeds } from "./sterna/index.js";
import { WebWorkerEngine } from "./sterna/worker_engine.js";
import { show } from "./ui/markdown.js";
import { Pace, problem, size } from "./words.js";

const $ = (id) => document.getElementById(id);
const log = $("log");
const question = $("question");

/** `messages`: {role, content}; `running`: an answer is being made. */
const state = { models: [], needs: new Map(), messages: [], running: false, model: null };
let worker = null;
let engine = null;

/** Sampling options of the page's address, `?temperature=0`; what is not there is up to the model. */
const SAMPLING = Object.fromEntries(
  [...new URLSearchParams(location.search)]
    .filter(([name]) => ["temperature", "top_p", "seed", "max_tokens"].includes(name))
    .map(([name, value]) => [name, Number(value)]),
);

/* ---- what is shown ---- */

function open(part) {
  for (const id of ["chooser", "loading"]) $(id).hidden = id !== part;
  $("setup").hidden = part === "chat";
  $("chat").hidden = part !== "chat";
  for (const id of ["leave", "new", "skip"]) $(id).hidden = part !== "chat";
}

function complain(error) {
  const { title, text, hints } = problem(error);
  $("problem-title").textContent = title;
  $("problem-text").textContent = text;
  $("problem-hints").replaceChildren(...hints.map((hint) => make("li", hint)));
  $("problem").hidden = false;
}

function make(tag, text = "", kind = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

/* ---- choosing ---- */

async function listModels() {
  open("chooser");
  if (!(await adapter())) {
    open(null);
    complain({ name: "NoWebGPU", message: "Models are computed with WebGPU, and this browser gives none to the page." });
    return;
  }
  try {
    const answer = await fetch("models.json");
    if (!answer.ok) throw new Error(`models.json: ${answer.status} ${answer.statusText}`);
    state.models = await answer.json();
  } catch (error) {
    complain(error);
    return;
  }
  const choices = state.models.map(choice);
  $("models").append(...choices.map(({ label }) => label));
  const last = state.models.findIndex(({ url }) => url === localStorage.getItem("sterna.model"));
  choices[Math.max(last, 0)].radio.checked = true;
  await Promise.all(choices.map(describe));
}

async function adapter() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

function choice(model) {
  const label = make("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: "model", value: model.url });
  const facts = make("small", "looking at what it needs …");
  label.append(radio, make("b", model.name), facts);
  radio.addEventListener("change", verdict);
  return { model, label, radio, facts };
}

/** What a model needs, and whether this browser has it. */
async function describe({ model, facts }) {
  try {
    const needs = await modelNeeds(model.url);
    state.needs.set(model.url, { needs, kept: await isKept(model) });
    const fetched = needs.missingBytes === 0 ? "in this browser" : `${size(needs.missingBytes)} to fetch`;
    facts.textContent = `${fetched} · ${size(needs.memory)} of memory · ${needs.contextWindowSize} tokens of context`;
  } catch (error) {
    state.needs.set(model.url, { error, kept: await isKept(model).catch(() => false) });
    facts.textContent = problem(error).title;
    facts.className = "bad";
  }
  await verdict();
}

/** Whether there is anything of it to delete. */
async function isKept({ url }) {
  const { href } = new URL(url, location.href);
  return (await listCachedModels()).some((model) => model.url === href);
}

function chosen() {
  return document.querySelector("#models input:checked")?.value ?? null;
}

async function verdict() {
  const found = state.needs.get(chosen());
  const fits = Boolean(found?.needs);
  $("load").disabled = !fits;
  $("load").textContent = found?.needs?.missingBytes === 0 ? "Start" : "Load";
  $("forget").hidden = !found?.kept;
  const { usage, quota } = (await navigator.storage?.estimate?.()) ?? {};
  const room = quota === undefined ? "" : ` This site may store ${size(quota - usage)} more.`;
  const fit = `${outOfReach(found?.needs)}It fits on this device.${room}`;
  $("verdict").textContent = !found ? "" : fits ? fit : found.error.message;
}

/** What a load would end with, before what speaks for one. */
function outOfReach(needs) {
  if (!needs?.offline || needs.missingBytes === 0) return "";
  const why = navigator.onLine ? "The server cannot be reached" : "There is no network";
  return `${why}, and ${size(needs.missingBytes)} are still to be fetched. `;
}

for (const change of ["online", "offline"]) {
  addEventListener(change, () => {
    if (!$("chooser").hidden) refresh();
  });
}

$("chooser").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("load").disabled) load(chosen());
});

$("forget").addEventListener("click", async () => {
  const model = state.models.find(({ url }) => url === chosen());
  try {
    await deleteModelInCache(model.url);
  } catch (error) {
    complain(error);
  }
  location.reload();
});

/* ---- loading ---- */

async function load(url) {
  const name = state.models.find((model) => model.url === url).name;
  $("problem").hidden = true;
  $("loading-title").textContent = `Loading ${name}`;
  $("loading-text").textContent = "";
  $("bar").value = 0;
  open("loading");
  $("loading-title").focus();
  const pace = new Pace();
  let said = 0;
  const initProgressCallback = (report) => {
    $("bar").value = report.progress;
    $("loading-text").textContent = pace.text(report);
    if (report.progress >= said + 0.25) {
      said = report.progress; // four times, not at every piece, for those who listen
      $("loading-said").textContent = `${Math.round(100 * said)} percent`;
    }
  };
  worker ??= new Worker("worker.js", { type: "module" });
  engine ??= new WebWorkerEngine(worker);
  engine.setInitProgressCallback(initProgressCallback);
  try {
    await engine.reload(new URL(url, location.href).href);
  } catch (error) {
    if (error.name !== "Interrupted") complain(error);
    await refresh();
    return;
  }
  localStorage.setItem("sterna.model", url);
  state.model = name;
  $("where").textContent = `${name} · in this browser`;
  $("ready").textContent = `${name} is ready. Write something below.`;
  forgetConversation();
  open("chat");
  question.focus();
}

/** Back to the choice, with what has changed. */
async function refresh() {
  open("chooser");
  const labels = [...document.querySelectorAll("#models label")];
  await Promise.all(
    state.models.map((model, i) => describe({ model, facts: labels[i].querySelector("small") })),
  );
}

$("cancel").addEventListener("click", () => engine.unload());

$("leave").addEventListener("click", async () => {
  stop();
  await engine.unload();
  await refresh();
  $("chooser").querySelector("input:checked")?.focus();
});

/* ---- talking ---- */

function append(role, content) {
  $("empty").hidden = true;
  const article = make("article", "", role);
  article.append(make("h2", role === "user" ? "You" : state.model, "hidden"));
  const text = make("div", role === "user" ? content : "", role === "user" ? "text" : "text markdown");
  const foot = make("footer");
  article.append(text, ...(role === "user" ? [] : [foot]));
  log.append(article);
  follow(true);
  return { article, text, foot };
}

/** Stay at the end while the reader is there. */
function follow(always = false) {
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 120) log.scrollTop = log.scrollHeight;
}

function busy(running) {
  state.running = running;
  log.setAttribute("aria-busy", String(running));
  $("send").hidden = running;
  $("stop").hidden = !running;
}

async function send() {
  const content = question.value.trim();
  if (!content || state.running) return;
  question.value = "";
  grow();
  const messages = state.messages; // a new conversation may begin before the answer ends
  messages.push({ role: "user", content });
  append("user", content);
  const view = append("assistant");
  view.foot.append(make("span", "", "dots"));
  busy(true);
  const answer = { role: "assistant", content: "" };
  try {
    await receive(answer, view);
  } catch (error) {
    view.foot.replaceChildren(make("span", error.message, "error"));
    if (error.name === "DeviceLost") complain(error);
  }
  if (answer.content) messages.push(answer);
  else messages.pop();
  busy(false);
  question.focus();
}

async function receive(answer, view) {
  const stream = await engine.chat.completions.create({
    ...SAMPLING,
    messages: state.messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  let thought = "";
  let reason = null;
  let usage = null;
  let tokens = 0;
  let first = 0;
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    const [choice] = chunk.choices;
    if (choice === undefined) continue;
    reason = choice.finish_reason ?? reason;
    thought += choice.delta.reasoning_content ?? "";
    answer.content += choice.delta.content ?? "";
    if (!answer.content && !thought) continue; // the first piece is no token
    tokens++;
    first ||= performance.now();
    const seconds = (performance.now() - first) / 1000;
    const status = seconds > 0.5 ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    show(view.text, answer.content || (thought && `*${thought.trim()}*`));
    view.foot.replaceChildren(make("span", status));
    follow();
  }
  view.foot.replaceChildren(make("span", summary(usage, reason)));
}

function summary(usage, reason) {
  const parts = [];
  if (usage) {
    parts.push(`${usage.extra.decode_tokens_per_s.toFixed(1)} tokens/s`);
    parts.push(`${usage.completion_tokens} tokens`);
    parts.push(`first after ${usage.extra.time_to_first_token_s.toFixed(2)} s`);
  }
  if (reason === "length") parts.push("the context is full");
  if (reason === "abort") parts.push("stopped");
  return parts.join(" · ");
}

function stop() {
  if (state.running) engine.interruptGenerate();
}

function forgetConversation() {
  state.messages = [];
  log.querySelectorAll("article").forEach((article) => article.remove());
  $("empty").hidden = false;
}

async function startAnew() {
  if (state.model === null) return;
  stop();
  forgetConversation();
  question.focus();
  await engine.resetChat();
}

function grow() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
question.addEventListener("input", grow);
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.altKey && !event.ctrlKey && !event.metaKey && event.code === "KeyN") {
    event.preventDefault();
    startAnew();
  }
});
log.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copies]");
  if (button) await navigator.clipboard.writeText(button.closest("figure").querySelector("code").textContent);
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", startAnew);

// The next start needs no network; where a page may have no service worker, it needs one.
navigator.serviceWorker?.register("offline.js", { updateViaCache: "none" }).catch(() => undefined);

await listModels();
