// A model's markdown as DOM nodes. Text never becomes HTML: nodes are made one by one.

const INLINE =
  /(`+)(.+?)\1|\*\*(.+?)\*\*|\*([^\s*][^*]*?)\*|(?<!\w)_([^\s_][^_]*?)_(?!\w)|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)|(https?:\/\/[^\s<>()]*[^\s<>().,;:!?'"*])/;
const FENCE = /^\s*(```+|~~~+)\s*([^\s`]*)/;
const HEADING = /^(#{1,6})\s+(.*)/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)/;
const RULE = /^\s*([-*_])(\s*\1){2,}\s*$/;
const QUOTE = /^\s*>\s?/;
const ROW = /^\s*\|.*\|\s*$/;
const DIVIDER = /^\s*\|(\s*:?-+:?\s*\|)+\s*$/;
const DEEPEST = 8; // lists and quotations in each other

export function made(tag, text = "", name = "") {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function link(parent, text, url) {
  const element = parent.appendChild(made("a", text));
  Object.assign(element, { href: url, rel: "noopener noreferrer", target: "_blank" });
}

function inline(parent, text) {
  while (text) {
    const found = INLINE.exec(text);
    if (!found) break;
    parent.append(text.slice(0, found.index));
    text = text.slice(found.index + found[0].length);
    const [, , code, strong, star, line, label, url, bare] = found;
    if (code !== undefined) parent.append(made("code", code.trim() || code));
    else if (strong !== undefined) inline(parent.appendChild(made("strong")), strong);
    else if (label !== undefined) link(parent, label, url);
    else if (bare !== undefined) link(parent, bare, bare);
    else inline(parent.appendChild(made("em")), star ?? line);
  }
  parent.append(text);
}

const indent = (line) => line.length - line.trimStart().length;

// What a list's item holds beside its first line: lines that stand further in than its mark.
function inside(lines, at, width) {
  const start = at;
  for (; at < lines.length; at++) {
    const next = lines[at].trim() ? lines[at] : lines[at + 1];
    if (!next?.trim() || indent(next) <= width) break;
  }
  const own = lines.slice(start, at);
  const least = Math.min(...own.filter((line) => line.trim()).map(indent));
  return [own.map((line) => line.slice(Math.min(least, indent(line)))), at];
}

function list(lines, at, parent, depth) {
  const [, space, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const element = parent.appendChild(made(ordered ? "ol" : "ul"));
  if (ordered) element.start = parseInt(mark, 10); // a list goes on behind a block of code
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || RULE.test(lines[at]) || /\d/.test(found[2]) !== ordered || found[1].length < space.length) break;
    const item = element.appendChild(made("li"));
    const [own, next] = inside(lines, at + 1, found[1].length);
    if (FENCE.test(found[3])) blocks([found[3], ...own], item, depth + 1);
    else {
      inline(item, found[3]);
      blocks(own, item, depth + 1);
    }
    at = next;
    while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at++;
  }
  return at;
}

function fenced(lines, at, parent) {
  const [, mark, language] = FENCE.exec(lines[at]);
  const code = [];
  for (at++; at < lines.length && !lines[at].trimStart().startsWith(mark); at++) code.push(lines[at]);
  const block = parent.appendChild(made("div", "", "block"));
  const pre = block.appendChild(made("pre"));
  pre.tabIndex = 0; // it scrolls
  pre.setAttribute("aria-label", language ? `Code in ${language}` : "Code");
  pre.append(made("code", code.join("\n"), language ? `language-${language}` : ""));
  block.append(copier("Copy", () => code.join("\n")));
  return at + 1;
}

function table(lines, at, parent) {
  const cells = (line) => line.trim().slice(1, -1).split("|").map((cell) => cell.trim());
  const sides = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : ""));
  const element = parent.appendChild(made("div", "", "table")).appendChild(made("table"));
  for (const first = at; at < lines.length && ROW.test(lines[at]); at++) {
    if (at === first + 1) continue;
    const row = element.appendChild(made("tr"));
    cells(lines[at]).forEach((cell, index) => {
      const place = row.appendChild(made(at === first ? "th" : "td"));
      if (sides[index]) place.style.textAlign = sides[index];
      inline(place, cell);
    });
  }
  return at;
}

const begins = (lines, at) =>
  FENCE.test(lines[at]) || HEADING.test(lines[at]) || RULE.test(lines[at]) || ITEM.test(lines[at]) ||
  QUOTE.test(lines[at]) || (ROW.test(lines[at]) && DIVIDER.test(lines[at + 1] ?? ""));

function block(lines, at, parent, depth) {
  const line = lines[at];
  const heading = HEADING.exec(line);
  if (!line.trim()) return at + 1;
  if (FENCE.test(line)) return fenced(lines, at, parent);
  if (heading) inline(parent.appendChild(made(`h${Math.min(6, heading[1].length + 2)}`)), heading[2]);
  else if (RULE.test(line)) parent.append(made("hr"));
  else if (ITEM.test(line) && depth < DEEPEST) return list(lines, at, parent, depth);
  else if (QUOTE.test(line) && depth < DEEPEST) {
    const start = at;
    while (at < lines.length && QUOTE.test(lines[at])) at++;
    const own = lines.slice(start, at).map((each) => each.replace(QUOTE, ""));
    blocks(own, parent.appendChild(made("blockquote")), depth + 1);
    return at;
  } else if (ROW.test(line) && DIVIDER.test(lines[at + 1] ?? "")) return table(lines, at, parent);
  else {
    const element = parent.appendChild(made("p"));
    inline(element, line);
    for (at++; at < lines.length && lines[at].trim() && !begins(lines, at); at++) {
      element.append(made("br"));
      inline(element, lines[at]);
    }
    return at;
  }
  return at + 1;
}

function blocks(lines, parent, depth) {
  for (let at = 0; at < lines.length;) at = block(lines, at, parent, depth);
}

export function render(text) {
  const root = document.createDocumentFragment();
  blocks(text.split("\n"), root, 0);
  return root;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // browsers have no clipboard for pages that came from another machine without TLS
    const box = document.body.appendChild(made("textarea", "", "unseen"));
    box.value = text;
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
}

// A button that copies what `text` gives.
export function copier(label, text) {
  const button = made("button", label, "copy");
  button.type = "button";
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Cannot copy";
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}
