/**
 * Messages to a prompt, through the Jinja template that comes with a model.
 *
 * `@huggingface/jinja` parses and runs it; the text equals transformers' apply_chat_template. The
 * template is a stranger's program: it runs on a budget of steps and characters (`sandbox.ts`) and
 * sees plain data only. Does not know token ids.
 */

import { ArtifactError, RequestError } from "./errors.js";
import type { TextFiles } from "./interfaces.js";
import { Program, Refusal } from "./sandbox.js";
import { readSpecialTokens } from "./special_tokens.js";
import { isObject, readObject, readText, type Json } from "./text_files.js";

const DEFAULT = "default";
const TOOL_USE = "tool_use";
const REASONING = ["reasoning_content", "thinking", "reasoning"];

export interface RenderOptions {
  addGenerationPrompt?: boolean;
  tools?: readonly Json[] | null;
  /** Further variables of the template. */
  extra?: Json;
}

/** What the engine asks of a chat template, whoever wrote it. */
export interface Template {
  /** The names that the template reads from its caller. */
  readonly variables: ReadonlySet<string>;
  /** RequestError where the template refuses the conversation. */
  render(messages: readonly Json[], options?: RenderOptions): string;
}

/** Compiled templates by name, and the special tokens they may write. */
export class ChatTemplate implements Template {
  readonly variables: ReadonlySet<string>;
  readonly #programs: ReadonlyMap<string, Program>;

  constructor(
    sources: Readonly<Record<string, string>>,
    private readonly specialTokens: Readonly<Record<string, string>>,
    private readonly clock: () => Date = () => new Date(),
  ) {
    const pairs = Object.entries(sources).map(([name, text]) => [name, new Program(text)] as const);
    this.#programs = new Map(pairs);
    const read = pairs.flatMap(([, program]) => [...program.variables]);
    this.variables = new Set(read.filter((name) => !(name in specialTokens)));
  }

  /** chat_template.jinja wins over chat_template.json, and that over tokenizer_config.json. */
  static async load(files: TextFiles): Promise<ChatTemplate | null> {
    const sources = {
      ...named((await readObject(files, "tokenizer_config.json"))["chat_template"]),
      ...named((await readObject(files, "chat_template.json"))["chat_template"]),
    };
    const own = await readText(files, "chat_template.jinja");
    if (own !== null) sources[DEFAULT] = own;
    if (Object.keys(sources).length === 0) return null;
    return new ChatTemplate(sources, (await readSpecialTokens(files)).texts);
  }

  render(messages: readonly Json[], options: RenderOptions = {}): string {
    if (messages.length === 0) {
      throw new RequestError("the conversation is empty: send at least one message", "messages");
    }
    const { addGenerationPrompt = true, tools = null, extra = {} } = options;
    const program = this.#choose(tools);
    try {
      return program.run(
        {
          ...this.specialTokens,
          documents: null,
          ...extra,
          messages: messages.map(plain),
          tools,
          add_generation_prompt: addGenerationPrompt,
        },
        this.clock,
      );
    } catch (error) {
      if (error instanceof Refusal) {
        throw new RequestError(
          `the model's chat template refuses this conversation: ${error.message}`,
          "messages",
        );
      }
      throw new ArtifactError(
        `the model's chat template failed (${String(error).slice(0, 300)}); the messages may lack ` +
          "a field that it needs",
      );
    }
  }

  /** `tool_use` where tools are given and it exists, else `default`. */
  #choose(tools: readonly Json[] | null): Program {
    const wanted = tools !== null && tools.length > 0 ? [TOOL_USE, DEFAULT] : [DEFAULT];
    for (const name of wanted) {
      const found = this.#programs.get(name);
      if (found !== undefined) return found;
    }
    throw new ArtifactError(`the model has no chat template named ${DEFAULT}`);
  }
}

function named(value: unknown): Record<string, string> {
  if (value === null || value === undefined) return {};
  if (typeof value === "string") return { [DEFAULT]: value };
  const entries: unknown[] = Array.isArray(value) ? value : [null];
  return Object.fromEntries(
    entries.map((entry) => {
      const pair = isObject(entry) ? [entry["name"], entry["template"]] : [];
      if (typeof pair[0] === "string" && typeof pair[1] === "string") return pair;
      throw new ArtifactError("chat_template is neither a text nor named texts");
    }),
  ) as Record<string, string>;
}

/** A message without nulls, its reasoning under every name that templates read. */
function plain(message: Json): Json {
  const given = Object.entries(message).filter(([, value]) => value !== null && value !== undefined);
  const found: Json = Object.fromEntries(given);
  const name = REASONING.find((key) => key in found);
  if (name === undefined) return found;
  return { thinking: found[name], ...found, reasoning_content: found[name] };
}
