// A model's markdown as DOM nodes. Text never becomes HTML: nodes are made one by one.

const INLINE = /(`+)(.+?)\1|\*\*(.+?)\*\*|\*([^\s*][^*]*?)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/;

function inline(parent, text) {
  while (text) {
    const found = INLINE.exec(text);
    if (!found) break;
    parent.append(text.slice(0, found.index));
    text = text.slice(found.index + found[0].length);
    const [, , code, strong, em, label, url] = found;
    if (code !== undefined) parent.append(made("code", code.trim() || code));
    else if (strong !== undefined) inline(parent.appendChild(made("strong")), strong);
    else if (em !== undefined) inline(parent.appendChild(made("em")), em);
    else {
      const link = parent.appendChild(made("a", label));
      link.href = url;
      link.rel = "noopener noreferrer";
      link.target = "_blank";
    }
  }
  parent.append(text);
}

export function made(tag, text = "", name = "") {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function list(lines, at, parent) {
  const ordered = /^\s*\d+[.)]\s/.test(lines[at]);
  const element = parent.appendChild(made(ordered ? "ol" : "ul"));
  const item = ordered ? /^\s*\d+[.)]\s+(.*)/ : /^\s*[-*+]\s+(.*)/;
  for (; at < lines.length; at++) {
    const found = item.exec(lines[at]);
    if (!found) break;
    inline(element.appendChild(made("li")), found[1]);
  }
  return at;
}

export function render(text) {
  const root = document.createDocumentFragment();
  const lines = text.split("\n");
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    const fence = /^\s*(```+|~~~+)\s*(\S*)/.exec(line);
    if (fence) {
      const code = [];
      for (at++; at < lines.length && !lines[at].trimStart().startsWith(fence[1]); at++) code.push(lines[at]);
      at++;
      const block = root.appendChild(made("pre"));
      block.append(made("code", code.join("\n"), fence[2] ? `language-${fence[2]}` : ""));
      continue;
    }
    const heading = /^(#{1,6})\s+(.*)/.exec(line);
    if (heading) {
      inline(root.appendChild(made(`h${Math.min(6, heading[1].length + 2)}`)), heading[2]);
      at++;
    } else if (/^\s*([-*+]|\d+[.)])\s/.test(line)) {
      at = list(lines, at, root);
    } else if (!line.trim()) {
      at++;
    } else {
      const paragraph = [];
      while (at < lines.length && lines[at].trim() && !/^\s*(```|~~~|#{1,6}\s|([-*+]|\d+[.)])\s)/.test(lines[at])) {
        paragraph.push(lines[at++]);
      }
      if (!paragraph.length) paragraph.push(lines[at++]);
      const element = root.appendChild(made("p"));
      paragraph.forEach((part, index) => {
        if (index) element.append(made("br"));
        inline(element, part);
      });
    }
  }
  return root;
}
