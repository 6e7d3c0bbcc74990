// One reply as it comes: its text, what ran, how fast.

import { chat } from "./api.js";
import { copier, made, render } from "./markdown.js";

export class Reply {
  constructor(place, label) {
    this.element = place.appendChild(made("article", "", "reply"));
    this.element.setAttribute("aria-label", `Reply of ${label}`);
    this.body = this.element.appendChild(made("div", "", "busy"));
    this.facts = this.element.appendChild(made("div", label, "facts"));
    this.label = label;
    this.text = "";
    this.tokens = [];
    this.frame = 0; // that was asked for
  }

  // Runs the request to its end; errors are shown in the reply. `scroll` is called as it grows.
  async run(body, signal, scroll) {
    const start = performance.now();
    let first = 0;
    let last = null;
    let reason = "";
    try {
      for await (const chunk of chat({ ...body, logprobs: "prompt" in body ? 0 : true }, signal)) {
        const [choice] = chunk.choices;
        reason = choice?.finish_reason || reason;
        if (choice?.delta.content || choice?.logprobs) {
          first ||= performance.now();
          this.text += choice.delta.content || "";
          this.tokens.push(...(choice.logprobs?.content || []).map((token) => token.token));
          this.#soon(scroll);
        }
        if (chunk.loragraft) last = chunk;
      }
    } catch (error) {
      this.failed = error;
    }
    cancelAnimationFrame(this.frame);
    this.#show(scroll);
    this.body.classList.remove("busy");
    if (last) this.#account(last, first - start, performance.now() - first, reason);
    else if (this.stopped) this.facts.textContent = `${this.label} · stopped`;
  }

  get stopped() {
    return this.failed?.name === "AbortError";
  }

  // Tokens come faster than a screen changes, and all of the text is laid out each time.
  #soon(scroll) {
    this.frame ||= requestAnimationFrame(() => this.#show(scroll));
  }

  #show(scroll) {
    this.frame = 0;
    this.body.replaceChildren(render(this.text));
    scroll();
  }

  #account(chunk, waited, took, reason) {
    const made_ = chunk.usage.completion_tokens;
    const cut = reason === "length" ? " (the limit)" : "";
    const speed = made_ > 1 ? ` · ${((made_ - 1) / (took / 1000)).toFixed(1)} tokens/s` : "";
    this.facts.textContent =
      `${this.label} · ${made_} tokens${cut}${speed} · first after ${(waited / 1000).toFixed(2)} s · `;
    this.facts.append(copier("copy", () => this.text), " · ");
    const details = this.facts.appendChild(made("details"));
    details.append(made("summary", "receipt"), made("pre", JSON.stringify(chunk.loragraft, null, 2)));
  }

  // Shows the tokens as they are, those at the places `own` highlighted.
  part(own) {
    const raw = made("div", "", "raw");
    this.tokens.forEach((token, index) => raw.append(own.has(index) ? made("mark", token, "parted") : token));
    this.body.replaceChildren(raw);
  }
}

// Tokens that each of two replies has for itself, by their places: what is not in a longest common subsequence.
export function parting(a, b) {
  let start = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  const [m, n] = [a.length - start, b.length - start];
  const [ofA, ofB] = [new Set(), new Set()];
  for (let i = start; i < a.length; i++) ofA.add(i);
  for (let j = start; j < b.length; j++) ofB.add(j);
  if (m * n > 4e6) return [ofA, ofB]; // too long to compare
  const longest = Array.from({ length: m + 1 }, () => new Uint16Array(n + 1));
  for (let i = m - 1; i >= 0; i--) {
    for (let j = n - 1; j >= 0; j--) {
      longest[i][j] = a[start + i] === b[start + j]
        ? longest[i + 1][j + 1] + 1
        : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  for (let i = 0, j = 0; i < m && j < n;) {
    if (a[start + i] === b[start + j]) {
      ofA.delete(start + i++);
      ofB.delete(start + j++);
    } else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  }
  return [ofA, ofB];
}
