/**
 * What the engine asks of the text side: tokenizer, chat template, detokenizer, grammar.
 *
 * The engine knows ids and logits; whoever implements `LoadText` knows texts. The two meet here and
 * nowhere else, so a page that has its own tokenizer may bring it along. Names and meanings are
 * those of the Python package: text/tokenizer.py, text/detokenizer.py, engine/chat_prompt.py,
 * engine/grammar.py, engine/chat_parser.py.
 */

import type { ChatConfig } from "./chat_config.js";
import type { ChatRequest, CompletionRequest, ToolCallPiece } from "./protocol.js";

/** Text to ids and back. Ids are of the model's vocabulary. */
export interface Tokenizer {
  /** Ids 0..vocabSize-1 exist; a model's rows past them are padding and never sampled. */
  readonly vocabSize: number;
  readonly specialTokens: ReadonlyMap<string, number>;
  readonly bosId: number | null;
  readonly eosIds: readonly number[];
  /**
   * `addSpecialTokens` (default true): bos and the like, as the tokenizer's own file says.
   * `allowSpecial` (default false): special tokens spelled out in `text` become those tokens.
   */
  encode(text: string, options?: EncodeOptions): number[];
  decode(ids: readonly number[], options?: { skipSpecialTokens?: boolean }): string;
  /** The token as the vocabulary spells it; null where there is no such id. */
  idToToken(id: number): string | null;
  /** The bytes that the token adds to a text. */
  idToPiece(id: number): Uint8Array;
}

export interface EncodeOptions {
  addSpecialTokens?: boolean;
  allowSpecial?: boolean;
}

/** Text of a growing list of ids: all `put` and `finish` joined equal `decode` of the whole list. */
export interface Detokenizer {
  /** The text that is certain once these ids have come: never half a character. */
  put(ids: readonly number[]): string;
  /** What was held back. */
  finish(): string;
}

/** Cuts a stream of text before the stop string that is complete first. */
export interface StopStrings {
  readonly stopped: boolean;
  put(text: string): string;
  /** What was held back as the possible beginning of a stop string. */
  finish(): string;
}

/** A conversation to the ids of its prompt. What users wrote never becomes a special token. */
export interface ChatTemplate {
  /** RequestError where the model's template cannot say it. */
  render(request: ChatRequest): number[];
}

/** What may come next in one answer. Masks are words: bit i of word j is token 32 j + i. */
export interface Constraint {
  /** Nothing more may come: the answer is complete. */
  readonly finished: boolean;
  /** ceil(vocabSize / 32) words; valid until the next `accept`. RequestError where nothing fits. */
  mask(): Promise<Uint32Array>;
  accept(token: number): void;
  /** Gives memory of a wasm library back. */
  dispose(): void;
}

/** One answer taken apart as it grows: what is said, what is thought, which tools are called. */
export interface AnswerParser {
  put(text: string): AnswerPiece;
  finish(): AnswerPiece;
}

export interface AnswerPiece {
  content?: string;
  reasoning?: string;
  toolCalls?: ToolCallPiece[];
}

/** The text side of one model. */
export interface Text {
  readonly tokenizer: Tokenizer;
  /** null: the model has no chat template, and only completions are possible. */
  readonly template: ChatTemplate | null;
  /** `request`: special tokens that calls of its tools are written with are text. */
  detokenizer(request?: ChatRequest): Detokenizer;
  stopStrings(stops: readonly string[]): StopStrings;
  /** What `response_format` and `tools` demand; null where any text will do. */
  constraint(request: ChatRequest | CompletionRequest): Promise<Constraint | null>;
  answer(request: ChatRequest): AnswerParser;
}

/** Files of the artifact by name; null where it has none of that name. */
export interface TextFiles {
  read(name: string): Promise<Uint8Array | null>;
}

export type LoadText = (files: TextFiles, config: ChatConfig) => Promise<Text>;
