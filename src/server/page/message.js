// One message on the page: its text as Markdown or, while the experts are looked at, as tokens that can be chosen.
import { MarkdownView } from "/markdown.js";
import { t } from "/words.js";

export function make(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export function action(name, label, onclick) {
  const node = make("button", { type: "button", className: "action", title: label, onclick }, icon(name));
  node.setAttribute("aria-label", label);
  return node;
}

async function copy(text, node) {
  try { await navigator.clipboard.writeText(text); } catch { return; }
  node.classList.add("done");
  setTimeout(() => node.classList.remove("done"), 1200);
}

function copyButton(label, text) {
  const node = action("copy", label, () => copy(text(), node));
  return node;
}

/// Code gets a head with its language and a button.
function decorate(node) {
  for (const code of node.matches?.("pre") ? [node] : node.querySelectorAll?.("pre") ?? []) {
    const inner = code.firstChild;
    const head = make("div", { className: "code-head" }, make("span", { textContent: code.dataset.language ?? "" }));
    if (navigator.clipboard) head.append(copyButton(t("Copy code"), () => inner.textContent));
    code.prepend(head);
  }
}

/// The answer as tokens: a list box with one tab stop; arrows, Home and End move, a click chooses.
class TokenView {
  constructor(parent, routing, onchoose) {
    this.routing = routing;
    this.onchoose = onchoose;
    this.items = [];
    this.chosen = -1;
    this.box = make("div", { className: "tokens" });
    this.box.addEventListener("click", (event) => this.choose(this.items.indexOf(event.target), true));
    this.box.addEventListener("keydown", (event) => this.key(event));
    this.box.setAttribute("role", "listbox");
    this.box.setAttribute("aria-label", t("Tokens of the answer"));
    parent.replaceChildren(this.box);
    this.update();
  }
  update() {
    const pieces = this.routing.shown;
    this.items.forEach((item, i) => { if (item.textContent !== pieces[i].text) item.textContent = pieces[i].text; });
    for (const piece of pieces.slice(this.items.length)) {
      const item = make("span", { textContent: piece.text, tabIndex: this.items.length ? -1 : 0 });
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", "false");
      if (!piece.text.trim()) {
        item.setAttribute("aria-label", piece.text.includes("\n") ? t("line break") : t("space"));
        if (piece.text.includes("\n")) item.classList.add("break");
      }
      this.items.push(item);
      this.box.append(item);
    }
  }
  choose(index, focus) {
    if (index < 0 || index >= this.items.length) return;
    const before = this.items[this.chosen];
    before?.setAttribute("aria-selected", "false");
    (before ?? this.items[0]).tabIndex = -1;
    this.chosen = index;
    this.items[index].setAttribute("aria-selected", "true");
    this.items[index].tabIndex = 0;
    if (focus) this.items[index].focus();
    this.onchoose(this.routing.shown[index], focus);
  }
  key(event) {
    const last = this.items.length - 1, now = Math.max(0, this.items.indexOf(document.activeElement));
    const moves = {
      ArrowRight: () => now + 1, ArrowLeft: () => now - 1, ArrowDown: () => this.nextLine(now, 1), ArrowUp: () => this.nextLine(now, -1),
      Home: () => 0, End: () => last, Enter: () => now, " ": () => now,
    };
    if (!Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    this.choose(Math.min(last, Math.max(0, moves[event.key]())), true);
  }
  /// The item above or below.
  nextLine(now, step) {
    const from = this.items[now].getBoundingClientRect();
    let best = now, distance = Infinity, line = null;
    for (let i = now + step; i >= 0 && i < this.items.length; i += step) {
      const box = this.items[i].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < 4) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > 4) break;
      if (Math.abs(box.left - from.left) < distance) { distance = Math.abs(box.left - from.left); best = i; }
    }
    return best;
  }
}

/// Texts of an answer's figures, those that are known.
export function figureTexts(figures) {
  return figures ? [t("{0} tokens", figures.tokens), figures.per_second ? t("{0} tokens/s", Number(figures.per_second).toFixed(1)) : "",
    figures.first_ms != null ? t("first token {0} ms", Math.round(figures.first_ms)) : ""] : [];
}

export class MessageNode {
  /// `last` in its conversation; actions: edit(text), again(), version(step), experts(), choose(piece, byHand)
  constructor(message, { last, routing, running, actions }) {
    this.message = message;
    this.routing = routing;
    this.actions = actions;
    this.due = false;
    this.body = make("div", { className: "body" });
    this.foot = make("footer");
    const name = make("h2", { className: "hidden", textContent: message.role === "user" ? t("You") : t("Answer") });
    this.node = make("article", { className: message.role }, name, this.body, this.foot);
    this.showText();
    this.showFoot(last, running);
  }

  showText() {
    this.tokens = null;
    this.body.replaceChildren();
    if (this.message.role === "user") this.body.append(make("p", { className: "plain", textContent: this.message.content }));
    else this.markdown = new MarkdownView(this.body, decorate);
    this.paint();
  }
  showTokens() {
    if (!this.routing || this.tokens) return;
    this.tokens = new TokenView(this.body, this.routing, this.actions.choose);
  }

  showFoot(last, running) {
    const { role, content, figures, note } = this.message, parts = [];
    if (role === "user") {
      if (!running) parts.push(action("edit", t("Edit and ask again"), () => this.edit()));
      if (!running && last) parts.push(action("again", t("Ask again"), this.actions.again));
      parts.push(copyButton(t("Copy message"), () => this.message.content));
    } else if (!running || !last) {
      if (content) parts.push(copyButton(t("Copy answer"), () => this.message.content));
      if (last) parts.push(action("again", t("Regenerate"), this.actions.again), ...this.versions());
      if (this.routing?.rows.length) parts.push(action("grid", t("Show its experts"), this.actions.experts));
      const text = [note && t(note), ...figureTexts(figures)].filter(Boolean).join(" · ");
      if (text) parts.push(make("span", { className: "figures", textContent: text }));
    } else if (!content) {
      parts.push(make("span", { className: "waiting", textContent: t("Waiting for the first token") }));
    }
    this.foot.replaceChildren(...parts);
  }

  /// Steps through the answers that were given to the same question.
  versions() {
    const { before = [], after = [] } = this.message, all = before.length + 1 + after.length;
    if (all === 1) return [];
    const back = action("back", t("Earlier answer"), () => this.actions.version(-1));
    const next = action("next", t("Later answer"), () => this.actions.version(1));
    back.disabled = !before.length;
    next.disabled = !after.length;
    return [back, make("span", { className: "place", textContent: t("{0} of {1}", before.length + 1, all) }), next];
  }

  edit() {
    const field = make("textarea", { value: this.message.content, rows: Math.min(10, this.message.content.split("\n").length + 1) });
    field.setAttribute("aria-label", t("Edit message"));
    const cancel = () => { this.showText(); this.showFoot(false, false); this.foot.querySelector("button")?.focus(); };
    const save = () => { if (field.value.trim()) this.actions.edit(field.value.trim()); };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); cancel(); }
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
    });
    this.body.replaceChildren(field);
    this.foot.replaceChildren(make("button", { type: "button", className: "primary", textContent: t("Ask again"), onclick: save }),
      make("button", { type: "button", textContent: t("Cancel"), onclick: cancel }));
    field.focus();
  }

  /// At most once per frame.
  askPaint(after) {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => { this.due = false; this.paint(); after(); });
  }
  paint() {
    if (this.message.content && this.foot.querySelector(".waiting")) this.foot.replaceChildren();
    if (this.tokens) this.tokens.update();
    else if (this.message.role !== "user") this.markdown.update(this.message.content);
  }
}
