/**
 * Pieces of an answer as OpenAI's objects: chunks of a stream, or one whole.
 *
 * Wholes are made of the chunks, so neither can say what the other does not.
 */

import type { Piece } from "./generate.js";
import type { AnswerPiece, AnswerParser, Tokenizer } from "./interfaces.js";
import type {
  ChatCompletion, ChatCompletionChunk, Completion, CompletionLogprobs, FinishReason, TokenLogprob,
  ToolCall, Usage,
} from "./protocol.js";
import type { Sample } from "./sampler.js";

/** What all objects of one answer have in common. */
export interface Head {
  readonly id: string;
  readonly created: number;
  readonly model: string;
}

export function head(kind: "chatcmpl" | "cmpl", model: string): Head {
  return { id: `${kind}-${crypto.randomUUID()}`, created: Math.floor(Date.now() / 1000), model };
}

/** Chunks of a chat answer; text is taken apart by `parser`. */
export async function* chatChunks(
  of: Head,
  pieces: AsyncIterable<Piece>,
  parser: AnswerParser,
  tokenizer: Tokenizer,
  logprobs: boolean,
): AsyncGenerator<ChatCompletionChunk, void, void> {
  const chunk = (delta: object, finish: FinishReason | null, samples: Sample[]): ChatCompletionChunk => ({
    ...of,
    object: "chat.completion.chunk",
    choices: [{
      index: 0, delta, finish_reason: finish,
      logprobs: logprobs ? { content: samples.map((s) => tokenLogprob(tokenizer, s)) } : null,
    }],
  });
  yield chunk({ role: "assistant", content: "" }, null, []);
  let called = false;
  let waiting: Sample[] = []; // of tokens whose text is still held back
  for await (const { text, sample, finish } of pieces) {
    if (sample !== null) waiting.push(sample);
    const parts = [parser.put(text), ...(finish === null ? [] : [parser.finish()])];
    for (const delta of parts.map(deltaOf)) {
      if (Object.keys(delta).length === 0) continue;
      called ||= "tool_calls" in delta;
      yield chunk(delta, null, waiting);
      waiting = [];
    }
    if (finish !== null) yield chunk({}, finish === "stop" && called ? "tool_calls" : finish, waiting);
  }
}

function deltaOf(part: AnswerPiece): ChatCompletionChunk["choices"][0]["delta"] {
  return {
    ...(part.content ? { content: part.content } : {}),
    ...(part.reasoning ? { reasoning_content: part.reasoning } : {}),
    ...(part.toolCalls !== undefined && part.toolCalls.length > 0 ? { tool_calls: part.toolCalls } : {}),
  };
}

/** A whole chat answer of its chunks. */
export async function wholeChat(
  of: Head,
  chunks: AsyncIterable<ChatCompletionChunk>,
  usage: () => Usage,
): Promise<ChatCompletion> {
  let [content, reasoning] = ["", ""];
  let finish: FinishReason = "stop";
  const calls: ToolCall[] = [];
  const told: TokenLogprob[] = [];
  let wanted = false;
  for await (const { choices } of chunks) {
    for (const { delta, finish_reason: reason, logprobs } of choices) {
      content += delta.content ?? "";
      reasoning += delta.reasoning_content ?? "";
      for (const piece of delta.tool_calls ?? []) {
        const call = (calls[piece.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
        call.id += piece.id ?? "";
        call.function.name += piece.function.name ?? "";
        call.function.arguments += piece.function.arguments ?? "";
      }
      wanted ||= logprobs !== null;
      told.push(...(logprobs?.content ?? []));
      finish = reason ?? finish;
    }
  }
  const message: ChatCompletion["choices"][0]["message"] = {
    role: "assistant", content: content === "" && calls.length > 0 ? null : content,
    ...(reasoning === "" ? {} : { reasoning_content: reasoning }),
    ...(calls.length === 0 ? {} : { tool_calls: calls }),
  };
  return {
    ...of, object: "chat.completion", usage: usage(),
    choices: [{ index: 0, message, finish_reason: finish, logprobs: wanted ? { content: told } : null }],
  };
}

/** Chunks of a text completion; `before`: the prompt, where it is to be repeated. */
export async function* textChunks(
  of: Head,
  pieces: AsyncIterable<Piece>,
  tokenizer: Tokenizer,
  logprobs: boolean,
  before: string,
): AsyncGenerator<Completion, void, void> {
  let offset = before.length;
  const chunk = (text: string, finish: FinishReason | null, samples: Sample[]): Completion => ({
    ...of, object: "text_completion",
    choices: [{
      index: 0, text, finish_reason: finish,
      logprobs: logprobs ? textLogprobs(tokenizer, samples, offset) : null,
    }],
  });
  if (before !== "") yield chunk(before, null, []);
  for await (const { text, sample, finish } of pieces) {
    yield chunk(text, finish, sample === null ? [] : [sample]);
    offset += sample === null ? 0 : textOf(tokenizer, sample.token).length;
  }
}

export async function wholeText(
  of: Head,
  chunks: AsyncIterable<Completion>,
  usage: () => Usage,
): Promise<Completion> {
  let text = "";
  let finish: FinishReason = "stop";
  let told: CompletionLogprobs | null = null;
  for await (const { choices } of chunks) {
    for (const choice of choices) {
      text += choice.text;
      finish = choice.finish_reason ?? finish;
      told = joined(told, choice.logprobs);
    }
  }
  return {
    ...of, object: "text_completion", usage: usage(),
    choices: [{ index: 0, text, finish_reason: finish, logprobs: told }],
  };
}

function joined(a: CompletionLogprobs | null, b: CompletionLogprobs | null): CompletionLogprobs | null {
  if (a === null || b === null) return a ?? b;
  return {
    tokens: [...a.tokens, ...b.tokens],
    token_logprobs: [...a.token_logprobs, ...b.token_logprobs],
    top_logprobs: a.top_logprobs === null && b.top_logprobs === null ? null : [...(a.top_logprobs ?? []), ...(b.top_logprobs ?? [])],
    text_offset: [...a.text_offset, ...b.text_offset],
  };
}

function textLogprobs(tokenizer: Tokenizer, samples: Sample[], offset: number): CompletionLogprobs {
  const tops = samples.map((s) => Object.fromEntries(s.top.map(([id, p]) => [textOf(tokenizer, id), p])));
  return {
    tokens: samples.map((s) => textOf(tokenizer, s.token)),
    token_logprobs: samples.map((s) => s.logprob ?? 0),
    top_logprobs: samples.some((s) => s.top.length > 0) ? tops : null,
    text_offset: samples.map(() => offset),
  };
}

function tokenLogprob(tokenizer: Tokenizer, sample: Sample): TokenLogprob {
  const told = (id: number, logprob: number) => ({
    token: textOf(tokenizer, id), logprob, bytes: [...tokenizer.idToPiece(id)],
  });
  const top = sample.top.map(([id, logprob]) => told(id, logprob));
  return { ...told(sample.token, sample.logprob ?? 0), top_logprobs: top };
}

/** The token by itself; where it is part of a character, U+FFFD: `bytes` has the truth. */
function textOf(tokenizer: Tokenizer, id: number): string {
  return new TextDecoder().decode(tokenizer.idToPiece(id));
}
