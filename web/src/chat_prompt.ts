/**
 * A chat request to the ids of its prompt, through the model's own template.
 *
 * What users wrote never becomes a special token. Knows no sampling options.
 */

import type { ChatTemplate } from "./chat_template.js";
import { renderConv } from "./conv_template.js";
import type { Dialect } from "./dialect.js";
import { RequestError } from "./errors.js";
import { Marker } from "./marking.js";
import { plainMessages } from "./messages.js";
import { offerOf, plainTools } from "./offer.js";
import type { ChatRequest } from "./protocol.js";
import { startOf, type Start } from "./reasoning.js";
import type { Json } from "./text_files.js";
import type { Tokenizer } from "./tokenizer.js";

// The template's own; whoever set them would set something else than it seems.
const RESERVED = new Set(["messages", "tools", "documents", "add_generation_prompt"]);

export interface Prompt {
  readonly ids: number[];
  /** Where the answer begins with regard to thoughts. */
  readonly start: Start;
}

/** One model's prompts. */
export class Prompts {
  readonly #marker: Marker;

  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly template: ChatTemplate | null,
    private readonly conv: Json | null,
    private readonly dialect: Dialect,
  ) {
    this.#marker = new Marker(tokenizer.specialTokens.keys());
  }

  /** RequestError where the model's template cannot say it. */
  make(request: ChatRequest): Prompt {
    const offer = offerOf(request);
    const shown = offer?.shown ?? [];
    const messages = plainMessages(request.messages, shown, this.dialect);
    const extra = this.#extra(request);
    if (this.template === null) return this.#withConv(messages);
    const tools = shown.length > 0 && this.dialect.tools.native ? plainTools(shown) : null;
    const [given, mark] = this.#marker.mark({ messages, tools, extra });
    const text = this.template.render(given.messages, given);
    return { ids: this.#encoded(text, mark), start: startOf(text, this.dialect.thinks) };
  }

  #withConv(messages: Json[]): Prompt {
    if (this.conv === null) {
      throw new RequestError("the model has no chat template; use completions.create", "messages");
    }
    const [given, mark] = this.#marker.mark(messages);
    const [prefix, text] = renderConv(this.conv, given);
    return { ids: [...prefix, ...this.#encoded(text, mark)], start: "speech" };
  }

  #encoded(text: string, mark: string | null): number[] {
    if (mark !== null) return this.tokenizer.encodeMarked(text, mark);
    return this.tokenizer.encode(text, { addSpecialTokens: false, allowSpecial: true });
  }

  /** Variables for the template, each of which it must read. */
  #extra(request: ChatRequest): Json {
    const thinking = request.extra_body?.enable_thinking ?? null;
    const given = {
      ...(thinking === null ? {} : { enable_thinking: thinking }),
      ...(request.chat_template_kwargs ?? {}),
    };
    const known = [...(this.template?.variables ?? [])].filter((name) => !RESERVED.has(name)).sort();
    for (const name of Object.keys(given)) {
      if (known.includes(name)) continue;
      throw new RequestError(
        `chat_template_kwargs has "${name.slice(0, 80)}", which the model's chat template does ` +
          `not read; it reads ${known.join(", ") || "nothing"}`,
        "chat_template_kwargs",
      );
    }
    return given;
  }
}
