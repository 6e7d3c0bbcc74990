// Talks to the server: OpenAI's API, and the adapters.

let key = sessionStorage.getItem("key") || "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

function headers() {
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function refusal(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* not the server's own answer */ }
  return new Refused(message, response.status);
}

async function reach(path, options) {
  try {
    return await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it still running?", 0);
  }
}

export async function get(path) {
  const response = await reach(path);
  if (!response.ok) throw await refusal(response);
  return response.json();
}

function asChat(chunk) {
  const choices = chunk.choices.map(({ text, logprobs }) => ({
    delta: { content: text },
    logprobs: logprobs && { content: logprobs.tokens.map((token) => ({ token })) },
  }));
  return { ...chunk, choices };
}

// The chunks of a streamed chat completion; of a text that is continued, where `body` has a prompt.
export async function* chat(body, signal) {
  const response = await reach("prompt" in body ? "/v1/completions" : "/v1/chat/completions", {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Refused("The connection to the server was lost during the reply.", 0);
    waiting += value;
    const events = waiting.split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.message, 500);
      yield "prompt" in body ? asChat(chunk) : chunk;
    }
  }
}
