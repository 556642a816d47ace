// Markdown to DOM nodes, in time linear in the text. What a model writes only ever becomes text nodes: elements are made from the names
// below, links lead to http, https and mailto addresses alone, and images are links.
const kLongestSpan = 2000;  // of emphasis, code and links inside a paragraph
const kDeepest = 6;         // of nested blocks and emphasis
const kLink = /^\[((?:[^\[\]\\\n]|\\.){0,500})\]\( *<?([^\s()<>]{1,2000})>?(?: +"[^"\n]{0,500}")? *\)/;  // [label](address "title")
const kPunctuation = /[!-/:-@[-`{-~]/;
const kItem = /^( {0,3})([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const kFence = /^( {0,3})(`{3,}|~{3,})([^`]*)$/;
const kRule = /^ {0,3}([-*_])( *\1){2,} *$/;
const kHeading = /^ {0,3}(#{1,6})(?= |$)(.*)$/;
const kQuote = /^ {0,3}>/;
const kTableRule = /^ {0,3}\|? *:?-+:? *(\| *:?-+:? *)+\|? *$/;

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function safeAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function link(label, address) {
  const node = element("a", label);
  node.href = address;
  node.rel = "noopener noreferrer nofollow";
  node.target = "_blank";
  return node;
}

// ---- inside a paragraph

/// Each returns the end of what it took at `at`, or 0. `out` has text(), add() and the depth.
const kSpans = {
  "\\": (source, at, out) => {
    if (!kPunctuation.test(source[at + 1] ?? "")) return 0;
    out.text(source[at + 1]);
    return at + 2;
  },
  "`": (source, at, out) => {
    let open = at;
    while (source[open] === "`") ++open;
    const mark = source.slice(at, open), limit = Math.min(source.length, open + kLongestSpan);
    for (let close = source.indexOf(mark, open); close >= 0 && close < limit; close = source.indexOf(mark, close)) {
      let end = close;
      while (source[end] === "`") ++end;
      if (end - close === mark.length) {
        out.add(element("code", source.slice(open, close).replace(/\n/g, " ").replace(/^ (.*[^ ].*) $/, "$1")));
        return end;
      }
      close = end;
    }
    out.text(mark);
    return open;
  },
  "*": (source, at, out) => emphasis(source, at, out, "**", "strong") || emphasis(source, at, out, "*", "em"),
  "_": (source, at, out) => emphasis(source, at, out, "__", "strong") || emphasis(source, at, out, "_", "em"),
  "~": (source, at, out) => emphasis(source, at, out, "~~", "del"),
  "[": (source, at, out) => bracket(source, at, out),
  "!": (source, at, out) => (source[at + 1] === "[" ? bracket(source, at + 1, out) : 0),
  "<": (source, at, out) => {
    const found = /^<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/.exec(source.slice(at, at + kLongestSpan));
    return found && out.link(found[1], found[1]) ? at + found[0].length : 0;
  },
  h: (source, at, out) => {
    if (/\w/.test(source[at - 1] ?? "")) return 0;
    const found = /^https?:\/\/[^\s<>"'`]+/.exec(source.slice(at, at + kLongestSpan));
    if (!found) return 0;
    const address = found[0].replace(/[.,;:!?)\]*_~]+$/, "");
    return out.link(address, address) ? at + address.length : 0;
  },
  "\n": (source, at, out) => {
    if (!source.slice(Math.max(0, at - 2), at).endsWith("  ")) return 0;
    out.add(element("br"));
    return at + 1;
  },
};

function emphasis(source, at, out, mark, name) {
  const word = (c) => c !== undefined && /\w/.test(c);
  const begin = at + mark.length;
  if (!source.startsWith(mark, at) || /\s/.test(source[begin] ?? " ") || out.depth >= kDeepest) return 0;
  if (mark[0] === "_" && word(source[at - 1])) return 0;
  const limit = Math.min(source.length, begin + kLongestSpan);
  for (let close = source.indexOf(mark, begin + 1); close >= 0 && close < limit; close = source.indexOf(mark, close + 1)) {
    const after = source[close + mark.length];
    if (/[\s\\]/.test(source[close - 1]) || (mark.length === 1 && (after === mark || source[close - 1] === mark))) continue;
    if (mark[0] === "_" && word(after)) continue;
    const node = element(name);
    inline(node, source.slice(begin, close), out.depth + 1);
    out.add(node);
    return close + mark.length;
  }
  return 0;
}

function bracket(source, at, out) {
  const found = kLink.exec(source.slice(at, at + kLongestSpan));
  return found && out.link(found[1].replace(/\\(.)/g, "$1") || found[2], found[2]) ? at + found[0].length : 0;
}

function inline(parent, source, depth = 0) {
  let plain = "";
  const flush = () => { if (plain) parent.append(plain); plain = ""; };
  const out = {
    depth,
    text: (text) => { plain += text; },
    add: (node) => { flush(); parent.append(node); },
    link: (label, text) => {
      const address = safeAddress(text);
      if (!address) return false;
      out.add(link(label, address));
      return true;
    },
  };
  for (let at = 0; at < source.length;) {
    const take = kSpans[source[at]], end = take ? take(source, at, out) : 0;
    if (!end) plain += source[at];
    at = end || at + 1;
  }
  flush();
}

function block(name, text) {
  const node = element(name);
  inline(node, text);
  return node;
}

// ---- blocks: each reader takes lines from `at` on and gives [node, end], or null

function fence(lines, at) {
  const open = kFence.exec(lines[at]);
  if (!open) return null;
  const indent = open[1].length, mark = open[2];
  let end = at + 1;
  const closes = (line) => { const l = line.trim(); return l.length >= mark.length && l === mark[0].repeat(l.length); };
  while (end < lines.length && !closes(lines[end])) ++end;
  const code = element("code", lines.slice(at + 1, end).map((l) => l.replace(new RegExp(`^ {0,${indent}}`), "")).join("\n"));
  const node = element("pre", code);
  node.tabIndex = 0;
  const language = /^[\w+#.-]{1,30}/.exec(open[3].trim());
  if (language) node.dataset.language = language[0];
  return [node, Math.min(end + 1, lines.length)];
}

function heading(lines, at) {
  const found = kHeading.exec(lines[at]);
  return found && [block("h" + Math.min(6, found[1].length + 2), found[2].trim().replace(/(^| )#+$/, "")), at + 1];
}

function rule(lines, at) { return kRule.test(lines[at]) ? [element("hr"), at + 1] : null; }

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && (kQuote.test(lines[end]) || (end > at && isText(lines[end])))) ++end;
  return end > at ? [element("blockquote", ...blocks(lines.slice(at, end).map((l) => l.replace(/^ {0,3}> ?/, "")), depth + 1)), end] : null;
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(lines, at) {
  if (!lines[at].includes("|") || !kTableRule.test(lines[at + 1] ?? "")) return null;
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) ++end;
  const width = cells(lines[at]).length;
  const row = (name, line) => element("tr", ...cells(line).slice(0, width).map((cell) => block(name, cell)));
  const node = element("table", element("thead", row("th", lines[at])), element("tbody", ...lines.slice(at + 2, end).map((l) => row("td", l))));
  const frame = element("div", node);
  frame.className = "table";
  frame.tabIndex = 0;
  return [frame, end];
}

function list(lines, at, depth) {
  const first = kItem.exec(lines[at]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]), node = element(ordered ? "ol" : "ul");
  if (ordered) node.start = parseInt(first[2], 10);
  while (at < lines.length) {
    const found = kItem.exec(lines[at]);
    if (!found || /\d/.test(found[2]) !== ordered || kRule.test(lines[at])) break;
    const indent = found[0].length, inner = [lines[at].slice(indent)];
    const within = (line) => line.startsWith(" ".repeat(Math.min(indent, found[1].length + 2)));
    for (++at; at < lines.length; ++at) {
      const line = lines[at], blank = line.trim() === "";
      if (blank ? !within(lines[at + 1] ?? "") : !within(line) && (!isText(line) || inner.at(-1) === "")) break;
      inner.push(blank ? "" : line.replace(new RegExp(`^ {0,${indent}}`), ""));
    }
    const content = blocks(inner, depth + 1), tight = content.length > 0 && content[0].nodeName === "P";
    node.append(element("li", ...(tight ? [...content[0].childNodes, ...content.slice(1)] : content)));
    if (lines[at]?.trim() === "" && kItem.test(lines[at + 1] ?? "")) ++at;
  }
  return [node, at];
}

/// A line that goes on with a paragraph.
function isText(line) {
  return line.trim() !== "" && ![kFence, kRule, kHeading, kQuote, kItem].some((start) => start.test(line));
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && isText(lines[end]) && !kTableRule.test(lines[end + 1] ?? "")) ++end;
  return [block("p", lines.slice(at, end).map((line) => line.trimStart()).join("\n")), end];
}

/// Calls each(node, first line, line after it).
function readBlocks(lines, depth, each) {
  const readers = depth < kDeepest ? [fence, heading, rule, quote, list, table, paragraph] : [paragraph];
  for (let at = 0; at < lines.length;) {
    if (lines[at].trim() === "") { ++at; continue; }
    const begin = at;
    for (const reader of readers) {
      const found = reader(lines, begin, depth);
      if (!found) continue;
      each(found[0], begin);
      at = found[1];
      break;
    }
  }
}

function blocks(lines, depth) {
  const nodes = [];
  readBlocks(lines, depth, (node) => nodes.push(node));
  return nodes;
}

/// Shows a text that grows: only its last blocks are read again, because a line that is not complete yet may still change what it is.
export class MarkdownView {
  constructor(parent, decorate = () => {}) {
    this.parent = parent;
    this.decorate = decorate;
    this.shown = "";
    this.blocks = [];  // {node, at: line}
  }
  update(text) {
    if (text === this.shown) return;
    if (!text.startsWith(this.shown)) this.blocks = [];
    this.shown = text;
    const kept = this.blocks.slice(0, -2), from = this.blocks[kept.length]?.at ?? 0;
    const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n").slice(from), fresh = [];
    readBlocks(lines, 0, (node, at) => fresh.push({ node, at: from + at }));
    for (const { node } of fresh) this.decorate(node);
    while (this.parent.childNodes.length > kept.length) this.parent.lastChild.remove();
    this.parent.append(...fresh.map(({ node }) => node));
    this.blocks = [...kept, ...fresh];
  }
}
