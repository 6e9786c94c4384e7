/**
 * What callers send and get: the fields of OpenAI's chat and text completions that the browser has.
 *
 * Only types and what is refused; `request.ts` checks values. Names are those of the wire, as in
 * engine/api_request.py of the Python package.
 */

/** How one request's tokens are chosen and when it ends. null and undefined mean "not given". */
export interface SamplingFields {
  temperature?: number | null;
  top_p?: number | null;
  top_k?: number | null;
  min_p?: number | null;
  repetition_penalty?: number | null;
  presence_penalty?: number | null;
  frequency_penalty?: number | null;
  logit_bias?: Record<string, number> | null;
  seed?: number | bigint | null;
  max_tokens?: number | null;
  stop?: string | string[] | null;
  ignore_eos?: boolean | null;
}

export interface TextPart {
  type: "text";
  text: string;
}

export interface ToolCall {
  id: string;
  type: "function";
  function: { name: string; arguments: string };
}

export interface ChatMessage {
  role: "system" | "developer" | "user" | "assistant" | "tool";
  content?: string | TextPart[] | null;
  name?: string | null;
  tool_calls?: ToolCall[] | null;
  tool_call_id?: string | null;
  reasoning_content?: string | null;
}

export interface Tool {
  type: "function";
  function: {
    name: string;
    description?: string | null;
    parameters?: Record<string, unknown> | null;
    strict?: boolean | null;
  };
}

export type ToolChoice =
  | "none"
  | "auto"
  | "required"
  | { type: "function"; function: { name: string } };

export type ResponseFormat =
  | { type: "text" }
  | { type: "json_object"; schema?: string }
  | {
      type: "json_schema";
      json_schema: {
        name: string;
        schema?: Record<string, unknown> | boolean;
        description?: string | null;
        strict?: boolean | null;
      };
    }
  | { type: "grammar"; grammar: string | { syntax: "lark" | "regex" | "ebnf"; definition: string } };

interface Common extends SamplingFields {
  model?: string | null;
  stream?: boolean | null;
  stream_options?: { include_usage?: boolean } | null;
  response_format?: ResponseFormat | null;
  n?: number | null;
  user?: string | null;
}

export interface ChatRequest extends Common {
  messages: ChatMessage[];
  max_completion_tokens?: number | null;
  logprobs?: boolean | null;
  top_logprobs?: number | null;
  tools?: Tool[] | null;
  tool_choice?: ToolChoice | null;
  parallel_tool_calls?: boolean | null;
  chat_template_kwargs?: Record<string, unknown> | null;
  extra_body?: { enable_thinking?: boolean | null } | null;
}

export interface CompletionRequest extends Common {
  prompt: string | number[];
  logprobs?: number | boolean | null;
  echo?: boolean | null;
}

export type FinishReason = "stop" | "length" | "tool_calls" | "abort";

export interface TokenLogprob {
  token: string;
  logprob: number;
  bytes: number[] | null;
  top_logprobs: { token: string; logprob: number; bytes: number[] | null }[];
}

export interface ToolCallPiece {
  index: number;
  id?: string;
  type?: "function";
  function: { name?: string; arguments?: string };
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details: { cached_tokens: number };
  extra: {
    prefill_tokens_per_s: number;
    decode_tokens_per_s: number;
    time_to_first_token_s: number;
    time_per_output_token_s: number;
    e2e_latency_s: number;
  };
}

export interface Logprobs {
  content: TokenLogprob[];
}

export interface ChatCompletion {
  id: string;
  object: "chat.completion";
  created: number;
  model: string;
  choices: {
    index: 0;
    message: {
      role: "assistant";
      content: string | null;
      reasoning_content?: string;
      tool_calls?: ToolCall[];
    };
    finish_reason: FinishReason;
    logprobs: Logprobs | null;
  }[];
  usage: Usage;
}

export interface ChatCompletionChunk {
  id: string;
  object: "chat.completion.chunk";
  created: number;
  model: string;
  choices: {
    index: 0;
    delta: {
      role?: "assistant";
      content?: string;
      reasoning_content?: string;
      tool_calls?: ToolCallPiece[];
    };
    finish_reason: FinishReason | null;
    logprobs: Logprobs | null;
  }[];
  usage?: Usage;
}

export interface CompletionLogprobs {
  tokens: string[];
  token_logprobs: number[];
  top_logprobs: Record<string, number>[] | null;
  text_offset: number[];
}

/** Streamed or whole: a chunk has the text that was added. */
export interface Completion {
  id: string;
  object: "text_completion";
  created: number;
  model: string;
  choices: {
    index: 0;
    text: string;
    finish_reason: FinishReason | null;
    logprobs: CompletionLogprobs | null;
  }[];
  usage?: Usage;
}
