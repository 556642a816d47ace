// Conversations and settings, kept in this browser alone. Each conversation has its own entry, so that two tabs do not overwrite each other's.
import { t } from "/words.js";

const kPrefix = "conclave.chat.", kSettings = "conclave.settings";
const kMostRouting = 200000;  // characters of one answer's experts that are kept

function read(name) {
  try { return JSON.parse(localStorage.getItem(name)); } catch { return null; }
}

function isAnswer(m) {
  return m && (m.role === "user" || m.role === "assistant") && typeof m.content === "string" && typeof (m.note ?? "") === "string";
}

function isMessage(m) { return isAnswer(m) && [m.before ?? [], m.after ?? []].every((list) => Array.isArray(list) && list.every(isAnswer)); }

function isChat(chat) {
  return chat && typeof chat.id === "string" && typeof chat.title === "string" && Array.isArray(chat.messages) && chat.messages.every(isMessage);
}

export function newChat() {
  return { id: Date.now().toString(36) + Math.random().toString(36).slice(2, 8), title: "", updated: Date.now(), messages: [] };
}

/// Newest first.
export function loadChats() {
  const chats = [];
  try {
    for (let i = 0; i < localStorage.length; ++i) {
      const chat = localStorage.key(i).startsWith(kPrefix) ? read(localStorage.key(i)) : null;
      if (isChat(chat)) chats.push(chat);
    }
  } catch { /* storage is off: nothing was kept */ }
  return chats.sort((a, b) => b.updated - a.updated);
}

/// False when the browser keeps nothing: its storage is full or off.
export function saveChat(chat) {
  const small = (key, value) => (key === "routing" && value?.experts?.length > kMostRouting ? undefined : value);
  try {
    localStorage.setItem(kPrefix + chat.id, JSON.stringify(chat, small));
    return true;
  } catch {
    return false;
  }
}

export function removeChat(chat) {
  try { localStorage.removeItem(kPrefix + chat.id); } catch { /* nothing is kept anyway */ }
}

export function isChatKey(name) { return name === null || name.startsWith(kPrefix); }

export function loadSettings() {
  const settings = read(kSettings);
  return settings && typeof settings === "object" && !Array.isArray(settings) ? settings : {};
}

export function saveSettings(settings) {
  try { localStorage.setItem(kSettings, JSON.stringify(settings)); } catch { /* they last until the page is left */ }
}

export function exportChats(chats) { return JSON.stringify({ conclave: 1, chats }, null, 1); }

/// Throws for other files. The chats get new names, so that none is replaced.
export function importChats(text) {
  const data = JSON.parse(text);
  if (!Array.isArray(data?.chats) || !data.chats.every(isChat)) throw new Error(t("This file holds no conversations of this page."));
  return data.chats.map((chat) => ({ ...newChat(), title: chat.title, messages: chat.messages, updated: Number(chat.updated) || Date.now() }));
}
