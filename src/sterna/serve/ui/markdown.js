// Markdown as a model writes it, to nodes of a page: text in, elements out, and never HTML.
// A subset of CommonMark with tables. Nothing that the text says can become a tag, an attribute
// other than a checked address, or a request. Time grows with the length of the text.

const DEPTH = 12; // of quotes and lists in each other; what is deeper is shown as text
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const ADDRESS = /^(?:https?:\/\/|mailto:)[^\s<>"]+$/i;

/**
 * Show `text` in `target`. Blocks that did not change since the last call keep their elements, so
 * that an answer can be shown as it grows.
 */
export function show(target, text) {
  const blocks = parse(text);
  const kept = (target.markdown ??= []);
  let same = 0;
  while (same < blocks.length && same < kept.length && kept[same] === blocks[same].source) same++;
  while (target.childNodes.length > same) target.lastChild.remove();
  for (const block of blocks.slice(same)) target.append(element(block));
  target.markdown = blocks.map((block) => block.source);
}

/** The blocks of a text, as records. Each of the outermost has the `source` it was made of. */
export function parse(text) {
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0);
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [block, end] = next(lines, at, depth);
    block.source = `${block.kind}\n${lines.slice(at, end).join("\n")}`;
    found.push(block);
    at = end;
  }
  return found;
}

/** The block that begins at a line, and where it ends. */
function next(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  const heading = HEADING.exec(line);
  if (heading) {
    const text = (heading[2] ?? "").replace(/(?:^|[ \t]+)#+[ \t]*$/, "");
    return [{ kind: "heading", level: heading[1].length, text }, at + 1];
  }
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (depth < DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function fence(lines, at) {
  const [, mark, language] = FENCE.exec(lines[at]);
  const close = new RegExp(`^ {0,3}\\${mark[0]}{${mark.length},}[ \\t]*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end++;
  const text = lines.slice(at + 1, end).join("\n");
  return [{ kind: "code", language, text }, Math.min(end + 1, lines.length)];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && lines[end].trim() && (QUOTE.test(lines[end]) || end > at)) {
    if (!QUOTE.test(lines[end]) && begins(lines, end, depth)) break;
    end++;
  }
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [{ kind: "quote", blocks: blocks(inner, depth + 1) }, end];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at])[2];
  const ordered = /\d/.test(first);
  const items = [];
  let loose = false;
  let end = at;
  while (end < lines.length) {
    const start = ITEM.exec(lines[end]);
    if (!start || sort(start[2]) !== sort(first) || RULE.test(lines[end])) break;
    const [inner, after] = item(lines, end, start, depth);
    items.push(blocks(inner, depth + 1));
    loose ||= inner.slice(0, -1).some((line, i) => !line.trim() && inner[i + 1].trim());
    end = after;
    const blank = end;
    while (end < lines.length && !lines[end].trim()) end++;
    if (end > blank && (end === lines.length || !ITEM.test(lines[end]))) {
      end = blank;
      break;
    }
    loose ||= end > blank;
  }
  const start = ordered ? parseInt(first, 10) : null;
  return [{ kind: "list", start, loose, items }, end];
}

/** Lists of different marks are different lists. */
function sort(mark) {
  return mark[mark.length - 1];
}

/** The lines of one item without their indent, and where it ends. */
function item(lines, at, start, depth) {
  const [, indent, mark, gap, rest] = start;
  const width = indent.length + mark.length + (gap && gap.length <= 4 ? gap.length : 1);
  const inner = [rest ?? ""];
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (!line.trim()) {
      const after = lines[end + 1];
      if (after === undefined || !after.startsWith(" ".repeat(width))) break;
      inner.push("");
    } else if (line.startsWith(" ".repeat(width))) {
      inner.push(line.slice(width));
    } else if (ITEM.test(line) || begins(lines, end, depth) || !inner.at(-1).trim()) {
      break;
    } else {
      inner.push(line.trimStart());
    }
  }
  return [inner, end];
}

function isTable(lines, at) {
  const divider = lines[at + 1];
  if (!lines[at].includes("|") || divider === undefined || !divider.includes("-")) return false;
  return DIVIDER.test(divider) && cells(lines[at]).length === cells(divider).length;
}

function table(lines, at) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left",
  );
  let end = at + 2;
  const rows = [];
  for (; end < lines.length && lines[end].trim() && lines[end].includes("|"); end++) {
    const row = cells(lines[end]).slice(0, head.length);
    rows.push([...row, ...Array(head.length - row.length).fill("")]);
  }
  return [{ kind: "table", head, align, rows }, end];
}

function cells(line) {
  const found = [""];
  const text = line.trim().replace(/^\|/, "").replace(/([^\\]|^)\|$/, "$1");
  for (let i = 0; i < text.length; i++) {
    if (text[i] === "\\" && text[i + 1] === "|") found[found.length - 1] += text[++i];
    else if (text[i] === "|") found.push("");
    else found[found.length - 1] += text[i];
  }
  return found.map((cell) => cell.trim());
}

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines, end, depth)) end++;
  const text = lines
    .slice(at, end)
    .map((line) => line.trimStart())
    .join("\n");
  return [{ kind: "paragraph", text: text.trimEnd() }, end];
}

/** Whether a line begins a block that may interrupt a paragraph. */
function begins(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  if (isTable(lines, at)) return true;
  if (depth >= DEPTH) return false;
  const start = ITEM.exec(line);
  return QUOTE.test(line) || (start !== null && !!start[4] && !/^(?!1[.)])\d/.test(start[2]));
}

function element(block) {
  switch (block.kind) {
    case "heading":
      return filled(`h${Math.min(6, block.level + 1)}`, block.text); // the page has the h1
    case "rule":
      return document.createElement("hr");
    case "code":
      return code(block);
    case "quote":
      return parent("blockquote", block.blocks.map(element));
    case "list":
      return items(block);
    case "table":
      return grid(block);
    default:
      return filled("p", block.text);
  }
}

function parent(tag, children) {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
}

function filled(tag, text) {
  return parent(tag, inline(text));
}

function code({ language, text }) {
  const figure = document.createElement("figure");
  const bar = document.createElement("figcaption");
  const name = document.createElement("span");
  name.textContent = language;
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "copy";
  copy.textContent = "Copy";
  copy.dataset.copies = "code";
  bar.append(name, copy);
  const pre = document.createElement("pre");
  pre.tabIndex = 0;
  const body = document.createElement("code");
  body.textContent = text;
  pre.append(body);
  figure.append(bar, pre);
  return figure;
}

function items({ start, loose, items: rows }) {
  const made = document.createElement(start === null ? "ul" : "ol");
  if (start !== null && start !== 1) made.start = start;
  for (const row of rows) {
    const children = row.flatMap((block) =>
      block.kind === "paragraph" && !loose ? inline(block.text) : [element(block)],
    );
    made.append(parent("li", children));
  }
  return made;
}

function grid({ head, align, rows }) {
  const line = (tag, row) =>
    parent(
      "tr",
      row.map((cell, i) => {
        const made = filled(tag, cell);
        made.className = align[i];
        return made;
      }),
    );
  const made = document.createElement("table");
  made.append(parent("thead", [line("th", head)]));
  made.append(parent("tbody", rows.map((row) => line("td", row))));
  const box = parent("div", [made]);
  box.className = "scroll";
  box.tabIndex = 0;
  return box;
}

/** The nodes of a line of text: emphasis, code, links, line ends. */
export function inline(text, inLink = false, depth = 0) {
  const nodes = [];
  const missing = new Set(); // marks that are known to have no end further on
  let plain = "";
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  let at = 0;
  while (at < text.length) {
    const found = depth < DEPTH ? mark(text, at, inLink, missing, depth) : null;
    if (found) {
      flush();
      nodes.push(found.node);
      at = found.end;
    } else if (text[at] === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      plain += text[at + 1];
      at += 2;
    } else if (text[at] === "`") {
      const run = /^`+/.exec(text.slice(at, at + 64))[0];
      plain += run;
      at += run.length;
    } else {
      plain += text[at++];
    }
  }
  flush();
  return nodes;
}

/** What is marked at a place, with where it ends; null: nothing is. */
function mark(text, at, inLink, missing, depth) {
  switch (text[at]) {
    case "`":
      return span(text, at, missing);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, inLink, missing, depth);
    case "[":
      return inLink ? null : link(text, at, depth);
    case "<":
      return inLink ? null : bracketed(text, at);
    case "h":
      return inLink ? null : bare(text, at);
    case "\n":
      return lineEnd(text, at);
    case "\\":
      return text[at + 1] === "\n" ? { node: document.createElement("br"), end: at + 2 } : null;
    case " ":
      return lineEnd(text, at);
    default:
      return null;
  }
}

/** The place of `mark` from `from` on, or -1; that it is nowhere is noted. */
function find(text, mark, from, missing) {
  if (missing.has(mark)) return -1;
  const at = text.indexOf(mark, from);
  if (at < 0) missing.add(mark);
  return at;
}

function span(text, at, missing) {
  const run = /^`+/.exec(text.slice(at, at + 64))[0];
  let close = find(text, run, at + run.length, missing);
  while (close >= 0) {
    let end = close;
    while (text[end] === "`") end++;
    if (end - close === run.length) break;
    close = text.indexOf(run, end);
  }
  if (close < 0) return null;
  let inner = text.slice(at + run.length, close).replaceAll("\n", " ");
  if (/^ .*[^ ].* $/.test(inner)) inner = inner.slice(1, -1);
  const node = document.createElement("code");
  node.textContent = inner;
  return { node, end: close + run.length };
}

function emphasis(text, at, inLink, missing, depth) {
  const sign = text[at];
  const mark = text.startsWith(sign + sign, at) ? sign + sign : sign;
  if (mark === "~" || /\s|^$/.test(text[at + mark.length] ?? "")) return null;
  if (sign === "_" && /\w/.test(text[at - 1] ?? "")) return null;
  let close = find(text, mark, at + mark.length + 1, missing);
  // The end stands after a letter, is no part of a longer mark, and `_` not within a word.
  while (close >= 0 && !closes(text, close, mark, sign)) {
    close = text.indexOf(mark, skip(text, close, sign));
  }
  if (close < 0) {
    missing.add(mark);
    return null;
  }
  const end = skip(text, close, sign);
  const inner = text.slice(at + mark.length, end - mark.length); // of *** the outer mark's is last
  const tag = mark === "~~" ? "del" : mark.length === 2 ? "strong" : "em";
  return { node: parent(tag, inline(inner, inLink, depth + 1)), end };
}

function closes(text, at, mark, sign) {
  if (/\s/.test(text[at - 1])) return false;
  const end = skip(text, at, sign);
  if (mark.length === 1 && end - at === 2) return false;
  return sign !== "_" || !/\w/.test(text[end] ?? "");
}

function skip(text, at, sign) {
  while (text[at] === sign) at++;
  return at;
}

function link(text, at, depth) {
  const length = text.slice(at + 1, at + 2001).indexOf("](");
  if (length < 0) return null;
  const middle = at + 1 + length;
  const label = text.slice(at + 1, middle);
  if (label.includes("[") || label.includes("\n\n")) return null;
  const target = /^([^\s()]*(?:\([^\s()]*\)[^\s()]*)*)(?:[ \t]+"[^"\n]*")?\)/.exec(
    text.slice(middle + 2, middle + 2502),
  );
  if (!target || !ADDRESS.test(target[1])) return null;
  const node = anchor(target[1], inline(label, true, depth + 1));
  return { node, end: middle + 2 + target[0].length };
}

function bracketed(text, at) {
  const found = /^<((?:https?:\/\/|mailto:)[^\s<>"]{1,2000})>/i.exec(text.slice(at, at + 2010));
  return found && { node: anchor(found[1], [found[1]]), end: at + found[0].length };
}

function bare(text, at) {
  if (/\w/.test(text[at - 1] ?? "")) return null;
  const found = /^https?:\/\/[^\s<>"`*|]{1,2000}/.exec(text.slice(at, at + 2010));
  if (!found) return null;
  let address = found[0].replace(/[.,;:!?'\]]+$/, "");
  if (address.endsWith(")") && !address.includes("(")) address = address.replace(/\)+$/, "");
  return { node: anchor(address, [address]), end: at + address.length };
}

/** A link that says where it leads, opened elsewhere and told nothing. */
function anchor(address, children) {
  const node = parent("a", children);
  node.href = address;
  node.title = address;
  node.target = "_blank";
  node.rel = "noopener noreferrer nofollow";
  return node;
}

/** Two spaces before a line end break the line; else it is a space. */
function lineEnd(text, at) {
  const found = /^ *\n[ \t]*/.exec(text.slice(at, at + 200));
  if (!found) return null;
  const breaks = found[0].startsWith("  ");
  const node = breaks ? document.createElement("br") : document.createTextNode("\n");
  return { node, end: at + found[0].length };
}
