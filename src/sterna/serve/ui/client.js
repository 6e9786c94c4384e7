// Talks to the server's OpenAI API: the models there are, and one streamed answer at a time.
// Knows no page.

/** What the server, or the way to it, answered instead of what was asked; `status` 0: nothing. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The models served: `{id, max_model_len}` of each. */
export async function models(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  const { data } = await response.json();
  return data;
}

/**
 * Answer a conversation. Yields what each chunk brings: `{text, reasoning, finish, usage,
 * timings}`, some of them. Throws `Refused`; an aborted `signal` ends it with an AbortError.
 */
export async function* answer(request, key, signal) {
  const body = { ...request, stream: true, stream_options: { include_usage: true } };
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let complete = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      complete = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Refused(chunk.error.message, 500);
    const choice = chunk.choices[0];
    yield {
      text: choice?.delta.content ?? "",
      reasoning: choice?.delta.reasoning_content ?? "",
      finish: choice?.finish_reason ?? null,
      usage: chunk.usage ?? null,
      timings: chunk.timings ?? null,
    };
  }
  if (!complete) throw new Refused("the connection ended before the answer did", 0);
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("the server cannot be reached", 0);
  }
  if (!response.ok) throw new Refused(await why(response), response.status);
  return response;
}

async function why(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

/** The data of each server-sent event; an event may come in any number of pieces. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (pending + value).split(/\r?\n\r?\n/);
      pending = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}
