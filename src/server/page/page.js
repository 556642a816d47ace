// The chat page: several conversations, one answer at a time in each, streamed from /v1/chat/completions. Nothing is sent without a press of
// Send, and nothing leaves for another place than this server.
import { action, figureTexts, make, MessageNode } from "/message.js";
import { ExpertPanel } from "/experts.js";
import { Routing } from "/routing.js";
import { ask, failure, headers } from "/stream.js";
import { exportChats, importChats, isChatKey, loadChats, loadSettings, newChat, removeChat, saveChat, saveSettings } from "/store.js";
import { kLanguages, speak, t } from "/words.js";

const byId = (id) => document.getElementById(id);
const kNumbers = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "max_tokens", "seed"];
const kThemes = ["system", "light", "dark"];

const settings = { record: true, theme: "system", ...loadSettings() };
speak(settings.language);
const runs = new Map();      // chat id -> {controller, message, said}
const routings = new WeakMap();  // message -> Routing
let chats = loadChats();
let current = chats[0] ?? newChat();
let nodes = [];              // MessageNodes of the current chat
let looked = null;           // the message whose experts are shown
let follow = true;           // the panel shows the newest token until one is chosen by hand
let leaving = false;         // the page is being closed or reloaded
let layers = [];             // of the served model, with experts

// ---- what is said

let quiet = 0;
function say(text, undo) {
  clearTimeout(quiet);
  byId("status").replaceChildren(...(text ? [make("span", { textContent: text })] : []));
  if (undo) byId("status").append(make("button", { type: "button", textContent: t("Undo"), onclick: undo }));
  if (undo) quiet = setTimeout(() => say(""), 8000);
}
function announce(text) { byId("announce").textContent = text; }

function keep(chat) {
  if (!chat.messages.length) return;
  chat.updated = Date.now();
  if (!saveChat(chat)) say(t("This browser does not keep the conversation: its storage is full or off."));
}

function routingOf(message) {
  if (!routings.has(message) && message.routing) routings.set(message, Routing.load(message.routing));
  return routings.get(message) ?? null;
}

// ---- drawing

function titleFor(chat) { return chat.title || t("New conversation"); }

function showChats() {
  byId("chats").replaceChildren(...chats.map((chat) => {
    const open = make("button", { type: "button", textContent: titleFor(chat), title: titleFor(chat), onclick: () => openChat(chat) });
    if (chat === current) open.setAttribute("aria-current", "true");
    const item = make("li", {}, open, action("close", t("Delete {0}", titleFor(chat)), () => deleteChat(chat)));
    item.classList.toggle("running", runs.has(chat.id));
    return item;
  }));
}

function welcome() {
  return make("div", { className: "welcome" }, make("img", { src: "/favicon.svg", alt: "", width: 56, height: 56 }),
    make("h2", { textContent: t("What would you like to know?") }),
    make("p", { textContent: t("Answers are computed by this server. Conversations stay in this browser.") }));
}

function atEnd() { const log = byId("log"); return log.scrollHeight - log.scrollTop - log.clientHeight < 80; }
function toEnd() { byId("log").scrollTop = byId("log").scrollHeight; }

function show() {
  showChats();
  const running = runs.has(current.id), last = current.messages.length - 1;
  nodes = current.messages.map((message, index) => new MessageNode(message, {
    last: index === last, running, routing: routingOf(message),
    actions: {
      edit: (text) => edit(index, text),
      again: () => regenerate(),
      version: (step) => showVersion(step),
      experts: () => { looked = message; follow = true; panel.show("token"); },
      choose: (piece, byHand) => { if (byHand) follow = false; panel.showToken(routingOf(message), piece); },
    },
  }));
  byId("log").replaceChildren(...(nodes.length ? nodes.map(({ node }) => node) : [welcome()]));
  byId("title").textContent = titleFor(current);
  document.title = `${titleFor(current)} – Conclave`;
  showButtons();
  if (panel.open) lookAtExperts();
  toEnd();
}

function showButtons() {
  const running = runs.has(current.id), focused = document.activeElement;
  byId("send").hidden = running;
  byId("stop").hidden = !running;
  byId("send").disabled = !byId("prompt").value.trim();
  byId("speed").textContent = runs.get(current.id)?.said ?? "";
  if ((focused === byId("send") || focused === byId("stop")) && focused.hidden) byId("prompt").focus();
}

/// The answer that is looked at becomes tokens, the others text.
function lookAtExperts() {
  const withExperts = current.messages.filter((message) => routingOf(message)?.layers.length);
  if (!withExperts.includes(looked)) { looked = withExperts.at(-1) ?? null; follow = true; }
  for (const node of nodes) {
    if (panel.open && node.message === looked) node.showTokens();
    else if (node.tokens) node.showText();
  }
  if (!panel.open) return;
  if (!looked && !layers.length) return panel.explain(t("This model has no layers with experts."));
  if (!looked) return panel.explain(settings.record ? null : t("Recording is off: see Settings."));
  if (follow) followNewest();
}

/// Chooses the newest token that has been computed.
function followNewest() {
  const view = nodes.find((node) => node.message === looked)?.tokens, routing = looked && routingOf(looked);
  if (!view || !routing) return;
  const computed = routing.shown.filter((piece) => piece.first < routing.rows.length).length;
  if (computed) view.choose(computed - 1, false);
  else panel.explain(null);
}

// ---- conversations

function openChat(chat) {
  current = chat;
  looked = null;
  say("");
  closeMenu();
  show();
  byId("prompt").focus();
}

function deleteChat(chat) {
  runs.get(chat.id)?.controller.abort();
  const at = chats.indexOf(chat);
  chats = chats.filter((other) => other !== chat);
  removeChat(chat);
  if (chat === current) current = chats[0] ?? newChat();
  show();
  say(t("“{0}” was deleted.", titleFor(chat)), () => {
    chats.splice(at, 0, chat);
    keep(chat);
    say("");
    openChat(chat);
  });
  byId("new").focus();
}

// ---- asking

function request(chat) {
  const body = { messages: [], stream: true, stream_options: { include_usage: true }, return_token_ids: true };
  if (settings.system?.trim()) body.messages.push({ role: "system", content: settings.system });
  body.messages.push(...chat.messages.map(({ role, content }) => ({ role, content })));
  for (const name of kNumbers) if (settings[name] !== undefined && settings[name] !== "") body[name] = Number(settings[name]);
  if (settings.record && layers.length) body.return_routed_experts = true;
  return body;
}

function speedText(figures) {
  return figures.first_ms == null ? t("waiting") : figureTexts(figures).filter(Boolean).join(" · ");
}

function took(chat, run, text, count, rows, figures) {
  const { message } = run, isShown = chat === current, stay = isShown && atEnd();
  message.content += text;
  message.figures = figures;
  routings.get(message)?.add(text, count, rows);
  run.said = speedText(figures);
  if (!isShown) return;
  const now = performance.now();
  if (now - (run.spoke ?? 0) > 250) { run.spoke = now; byId("speed").textContent = run.said; }
  nodes.find((node) => node.message === message)?.askPaint(() => {
    if (message === looked && follow && panel.open) followNewest();
    if (stay) toEnd();
  });
}

/// `before`: earlier answers to the same question.
async function answer(chat, before = []) {
  const run = { controller: new AbortController(), message: { role: "assistant", content: "", before }, said: t("waiting") };
  const { message } = run, sent = request(chat);
  runs.set(chat.id, run);
  if (sent.return_routed_experts) routings.set(message, new Routing(layers));
  chat.messages.push(message);
  looked = message;
  follow = true;
  say("");
  announce(t("The answer begins."));
  show();
  try {
    message.figures = await ask(sent, byId("key").value, run.controller.signal, {
      piece: (...piece) => took(chat, run, ...piece),
      end: (reason) => { if (reason === "length") message.note = "cut at the most new tokens"; },
    });
  } catch (error) {
    if (error.name === "AbortError" || leaving) message.note = "stopped";
    else { message.note = "broken off"; say(error.message || t("The server does not answer.")); }
  }
  runs.delete(chat.id);
  finish(chat, message);
}

function finish(chat, message) {
  const routing = routings.get(message);
  if (routing?.rows.length) message.routing = routing.save();
  if (!message.content) {
    chat.messages = chat.messages.filter((other) => other !== message);
    if (message.before.length) chat.messages.push({ ...message.before.pop(), before: message.before });
    if (!message.note && chat === current) say(t("The model ended its answer before the first word."));
  }
  if (!chats.includes(chat)) return;  // deleted meanwhile
  keep(chat);
  if (chat !== current) return showChats();
  announce(message.content ? t("Answer: {0}", message.content.slice(0, 1000)) : t("There is no answer."));
  const scrolled = atEnd() ? null : byId("log").scrollTop, { focused } = { focused: document.activeElement?.getAttribute("role") === "option" };
  const chosen = nodes.find((node) => node.message === looked)?.tokens?.chosen;
  show();
  if (scrolled !== null) byId("log").scrollTop = scrolled;
  if (!follow || focused) nodes.find((node) => node.message === looked)?.tokens?.choose(chosen, focused);
}

function titleOf(text) {
  const line = text.replace(/\s+/g, " ");
  return line.length > 80 ? line.slice(0, 79) + "…" : line;
}

function send() {
  const text = byId("prompt").value.trim();
  if (!text || runs.has(current.id)) return;
  if (!chats.includes(current)) chats.unshift(current);
  if (!current.messages.length) current.title = titleOf(text);
  current.messages.push({ role: "user", content: text });
  byId("prompt").value = "";
  fitPrompt();
  keep(current);
  answer(current);
}

function edit(index, text) {
  if (runs.has(current.id)) return;
  current.messages.splice(index);
  current.messages.push({ role: "user", content: text });
  if (index === 0) current.title = titleOf(text);
  keep(current);
  answer(current);
  byId("prompt").focus();
}

function regenerate() {
  if (runs.has(current.id)) return;
  const old = current.messages.at(-1).role === "assistant" ? current.messages.pop() : null;
  answer(current, old ? [...(old.before ?? []), alone(old), ...(old.after ?? [])] : []);
  byId("prompt").focus();
}

function alone({ role, content, figures, note, routing }) { return { role, content, figures, note, routing }; }

/// Puts the answer before or after the last one in its place.
function showVersion(step) {
  const now = current.messages.pop(), before = [...(now.before ?? [])], after = [...(now.after ?? [])];
  if (step < 0) after.unshift(alone(now));
  else before.push(alone(now));
  current.messages.push({ ...(step < 0 ? before.pop() : after.shift()), before, after });
  keep(current);
  show();
  const buttons = [...nodes.at(-1).foot.querySelectorAll(".place ~ button, button:has(+ .place)")];
  (buttons[step < 0 ? 0 : 1].disabled ? buttons[step < 0 ? 1 : 0] : buttons[step < 0 ? 0 : 1]).focus();
}

function fitPrompt() {
  const field = byId("prompt");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, innerHeight / 3)}px`;
  showButtons();
}

// ---- settings

function showTheme() {
  document.documentElement.dataset.theme = settings.theme;
  byId("theme").querySelector("span").textContent = t(`Theme: ${settings.theme}`);
  panel?.redraw();
}

function fillSettings() {
  for (const name of [...kNumbers, "system"]) byId(name).value = settings[name] ?? "";
  byId("record").checked = settings.record;
  byId("language").value = document.documentElement.lang;
}

function takeSetting(event) {
  const { id, value, checked, type } = event.target;
  if (id === "key") { try { sessionStorage.setItem("conclave.key", value); } catch { /* typed again next time */ } return connect(); }
  if (id === "language") { saveSettings({ ...settings, language: value }); return location.reload(); }
  if (id !== "record" && id !== "system" && !kNumbers.includes(id)) return;
  if (!event.target.reportValidity()) return;
  settings[id] = type === "checkbox" ? checked : value;
  saveSettings(settings);
}

async function get(path) {
  const response = await fetch(path, { headers: headers(byId("key").value) });
  if (!response.ok) throw Object.assign(await failure(response), { status: response.status });
  return response.json();
}

async function connect() {
  try {
    const info = await get("/server_info");
    byId("model").textContent = info.model.id;
    byId("prompt").placeholder = t("Message {0}", info.model.id);
    layers = info.model.moe_layers ?? [];
    for (const [name, value] of Object.entries(info.default_sampling))
      if (kNumbers.includes(name)) byId(name).placeholder = String(Number(value.toPrecision(6)));
    if (panel.open) lookAtExperts();
  } catch (error) {
    byId("model").textContent = error.status === 401 ? t("needs an API key") : error.status === 503 ? t("loading") : t("no connection");
    if (error.status === 401) say(t("This server wants an API key: see Settings."));
    else setTimeout(connect, error.status === 503 ? 500 : 3000);
  }
}

// ---- events

function closeMenu() {
  document.body.classList.remove("with-menu");
  byId("menu").setAttribute("aria-expanded", "false");
}

function openedExperts() {
  lookAtExperts();
  nodes.find((node) => node.message === looked)?.node.scrollIntoView({ block: "nearest" });
}

const panel = new ExpertPanel({ get, onopen: openedExperts, onclose: lookAtExperts });

byId("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
byId("prompt").addEventListener("input", fitPrompt);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
byId("stop").addEventListener("click", () => runs.get(current.id)?.controller.abort());
byId("new").addEventListener("click", () => openChat(newChat()));
byId("menu").addEventListener("click", () => {
  const open = document.body.classList.toggle("with-menu");
  byId("menu").setAttribute("aria-expanded", String(open));
  if (open) byId("new").focus();
});
byId("shade").addEventListener("click", closeMenu);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || byId("settings").open) return;
  if (document.body.classList.contains("with-menu")) { closeMenu(); byId("menu").focus(); }
  else if (runs.has(current.id)) runs.get(current.id).controller.abort();
  else panel.close();
});
byId("theme").addEventListener("click", () => {
  settings.theme = kThemes[(kThemes.indexOf(settings.theme) + 1) % kThemes.length];
  saveSettings(settings);
  showTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => panel.redraw());
byId("show-settings").addEventListener("click", () => byId("settings").showModal());
for (const id of ["hide-settings", "done"]) byId(id).addEventListener("click", () => byId("settings").close());
byId("fields").addEventListener("submit", (event) => { event.preventDefault(); byId("settings").close(); });
byId("fields").addEventListener("change", takeSetting);
byId("reset").addEventListener("click", () => {
  for (const name of [...kNumbers, "system"]) delete settings[name];
  settings.record = true;
  saveSettings(settings);
  fillSettings();
});
byId("export").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([exportChats(chats)], { type: "application/json" }));
  make("a", { href: url, download: "conversations.json" }).click();
  URL.revokeObjectURL(url);
});
byId("import").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", async () => {
  try {
    const read = importChats(await byId("file").files[0].text());
    read.forEach(saveChat);
    chats = loadChats();
    show();
    say(t("{0} conversations were added.", read.length));
  } catch (error) { say(error.message); }
  byId("file").value = "";
  byId("settings").close();
});
addEventListener("pageshow", () => { leaving = false; });
addEventListener("pagehide", () => {
  leaving = true;
  for (const chat of chats) if (runs.get(chat.id)?.message.content) { runs.get(chat.id).message.note = "stopped"; keep(chat); }
});
addEventListener("storage", (event) => {
  if (!isChatKey(event.key) || runs.size) return;
  chats = loadChats();
  current = chats.find((chat) => chat.id === current.id) ?? (current.messages.length ? chats[0] ?? newChat() : current);
  show();
});

try { byId("key").value = sessionStorage.getItem("conclave.key") ?? ""; } catch { /* storage is off */ }
if (!kThemes.includes(settings.theme)) settings.theme = "system";
for (const [value, textContent] of Object.entries(kLanguages)) byId("language").append(make("option", { value, textContent, lang: value }));
fillSettings();
showTheme();
show();
connect();
byId("prompt").focus();
