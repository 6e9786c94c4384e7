/**
 * The text side of a model, from the files of its artifact: what the engine asks for in
 * `interfaces.ts`.
 *
 * Puts together tokenizer, template, parser and grammar; the grammar's library is loaded when a
 * request first needs it. Loaded apart from the engine, so a page may bring another text side.
 */

import { ChatParser } from "./chat_parser.js";
import { Prompts, type Prompt } from "./chat_prompt.js";
import { ChatTemplate as TemplateText } from "./chat_template.js";
import type { ChatConfig } from "./chat_config.js";
import { StopAt, StreamDecoder } from "./detokenizer.js";
import { readDialect, type Dialect } from "./dialect.js";
import type { Grammars } from "./grammar.js";
import { sourceOf, type Source } from "./grammar_source.js";
import type {
  ChatTemplate,
  Constraint,
  LoadText,
  StopStrings,
  Text,
  TextFiles,
} from "./interfaces.js";
import { offerOf } from "./offer.js";
import type { ChatRequest, CompletionRequest } from "./protocol.js";
import { Tokenizer } from "./tokenizer.js";
import { literalsOf } from "./tool_syntax.js";

type LoadGrammars = () => Promise<typeof Grammars>;

/** A text side that has its grammars from where the caller says. */
export function textLoader(grammars: LoadGrammars): LoadText {
  return async (files: TextFiles, config: ChatConfig) => {
    const tokenizer = await Tokenizer.load(files);
    const template = await TemplateText.load(files);
    return new ModelText(tokenizer, template, config, grammars);
  };
}

export const loadText: LoadText = textLoader(async () => (await import("./grammar.js")).Grammars);

class ModelText implements Text {
  readonly template: ChatTemplate | null;
  readonly #dialect: Dialect;
  readonly #prompts: Prompts;
  readonly #made = new WeakMap<ChatRequest, Prompt>(); // one request is asked about more than once
  readonly #endIds: readonly number[];
  #grammars: Promise<Grammars> | null = null;

  constructor(
    readonly tokenizer: Tokenizer,
    template: TemplateText | null,
    config: ChatConfig,
    private readonly loadGrammars: LoadGrammars,
  ) {
    this.#dialect = readDialect(template, tokenizer.specialTokens.keys());
    this.#prompts = new Prompts(tokenizer, template, config.convTemplate, this.#dialect);
    this.#endIds = [...new Set([...tokenizer.eosIds, ...config.stopIds])];
    const render = (request: ChatRequest): number[] => this.#prompt(request).ids;
    this.template = template === null && config.convTemplate === null ? null : { render };
  }

  detokenizer(request?: ChatRequest): StreamDecoder {
    return new StreamDecoder(this.tokenizer, true, this.#shown(request));
  }

  stopStrings(stops: readonly string[]): StopStrings {
    return new StopAt(stops);
  }

  async constraint(request: ChatRequest | CompletionRequest): Promise<Constraint | null> {
    const source = this.#source(request);
    if (source === null) return null;
    this.#grammars ??= this.loadGrammars().then((Made) => new Made(this.tokenizer, this.#endIds));
    return (await this.#grammars).start(source);
  }

  answer(request: ChatRequest): ChatParser {
    const tools = offerOf(request) === null ? null : this.#dialect.tools;
    return new ChatParser(this.#prompt(request).start, tools);
  }

  #prompt(request: ChatRequest): Prompt {
    let made = this.#made.get(request);
    if (made === undefined) {
      made = this.#prompts.make(request);
      this.#made.set(request, made);
    }
    return made;
  }

  #source(request: ChatRequest | CompletionRequest): Source | null {
    const form = request.response_format ?? null;
    if (!("messages" in request)) return sourceOf(form, null, this.#dialect.tools, "speech");
    const offer = offerOf(request);
    if (offer === null && (form === null || form.type === "text")) return null;
    return sourceOf(form, offer, this.#dialect.tools, this.#prompt(request).start);
  }

  /** Special tokens that calls are written with: the parser has to see them. */
  #shown(request: ChatRequest | undefined): ReadonlySet<number> {
    if (request === undefined || offerOf(request) === null) return new Set();
    const literals = literalsOf(this.#dialect.tools);
    const found = [...this.tokenizer.specialTokens].filter(([text]) => text && literals.includes(text));
    return new Set(found.map(([, id]) => id));
  }
}
