/**
 * An answer's text taken apart as it comes: what is thought, what is said, which tools are called.
 *
 * Nothing is given out that further text could turn into something else, and what comes out does not
 * depend on how the text was cut into pieces. Grammars see to it that calls are well formed. See
 * engine/chat_parser.py of the Python package. Knows no tokens.
 */

import type { AnswerParser, AnswerPiece } from "./interfaces.js";
import type { ToolCallPiece } from "./protocol.js";
import { CLOSE, OPEN, type Start } from "./reasoning.js";
import { ID_LENGTH, onlyFirst, type ToolSyntax } from "./tool_syntax.js";

type State =
  | "opening" // perhaps a thought begins
  | "thought"
  | "speech"
  | "name"
  | "arguments"
  | "after" // what a call ends with
  | "more" // another call, or the end
  | "done";

const BEGINS: Record<Start, State> = { speech: "speech", thought: "thought", either: "opening" };
const ID_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/**
 * One answer's parser; `tools` is null where nothing is a call. White space around thoughts, and
 * between speech and calls, belongs to neither.
 */
export class ChatParser implements AnswerParser {
  #state: State;
  #text = ""; // not given out yet
  #space = ""; // at the end of what was given out: perhaps between two parts
  #fresh = true; // nothing of this part was given out
  #trims: boolean; // white space before this part is dropped
  #calls = 0;
  #object = new JsonObjectEnd();
  #out: Required<AnswerPiece> = empty();

  constructor(
    start: Start,
    private readonly tools: ToolSyntax | null,
  ) {
    this.#state = BEGINS[start];
    this.#trims = start === "thought";
  }

  put(text: string): AnswerPiece {
    this.#text += text;
    while (this.#step());
    return this.#take();
  }

  finish(): AnswerPiece {
    if (this.#state === "opening") this.#state = "speech";
    if (this.#state === "thought" || this.#state === "speech") {
      this.#give(this.#text);
      if (this.#state === "speech") this.#out.content += this.#space;
    }
    this.#text = this.#space = "";
    return this.#take();
  }

  #take(): AnswerPiece {
    const { content, reasoning, toolCalls } = this.#out;
    this.#out = empty();
    return {
      ...(content === "" ? {} : { content }),
      ...(reasoning === "" ? {} : { reasoning }),
      ...(toolCalls.length === 0 ? {} : { toolCalls }),
    };
  }

  /** Do what the text suffices for; false: wait for more. */
  #step(): boolean {
    switch (this.#state) {
      case "opening":
        return this.#opening();
      case "thought":
        return this.#until(CLOSE) && this.#enter("speech", true);
      case "speech":
        return this.tools === null ? this.#all() : this.#speech(this.tools);
      case "name":
        return this.#name(this.#syntax());
      case "arguments":
        return this.#arguments();
      case "after":
        return this.#after(this.#syntax());
      case "more":
        return this.#more(this.#syntax());
      case "done":
        this.#text = "";
        return false;
    }
  }

  #syntax(): ToolSyntax {
    if (this.tools === null) throw new Error("a call without tools");
    return this.tools;
  }

  #enter(state: State, trims = false): boolean {
    this.#state = state;
    this.#fresh = true;
    this.#trims = trims;
    this.#space = "";
    return true;
  }

  #opening(): boolean {
    const begun = this.#text.trimStart();
    if (begun.startsWith(OPEN)) {
      this.#text = begun.slice(OPEN.length);
      return this.#enter("thought", true);
    }
    return OPEN.startsWith(begun) ? false : this.#enter("speech");
  }

  #all(): false {
    this.#give(this.#text);
    this.#text = "";
    return false;
  }

  #speech(tools: ToolSyntax): boolean {
    const opening = tools.begin + tools.beforeName;
    if (!onlyFirst(tools)) return this.#until(opening) && this.#enter("name");
    const begun = this.#trims ? this.#text.trimStart() : this.#text;
    if (this.#fresh && begun.startsWith(opening)) {
      this.#text = begun.slice(opening.length);
      return this.#enter("name");
    }
    return this.#fresh && opening.startsWith(begun) ? false : this.#all();
  }

  /** Give out what comes before `mark`; true when it is there, and taken away. */
  #until(mark: string): boolean {
    const at = this.#text.indexOf(mark);
    const cut = at >= 0 ? at : this.#text.length - overlap(this.#text, mark);
    this.#give(this.#text.slice(0, cut));
    this.#text = this.#text.slice(at >= 0 ? at + mark.length : cut);
    return at >= 0;
  }

  /** Give out text of a thought or of speech, but hold back white space at its end. */
  #give(text: string): void {
    if (this.#fresh && this.#trims) text = text.trimStart();
    if (text === "") return;
    this.#fresh = false;
    text = this.#space + text;
    const holds = this.#state === "thought" || this.tools !== null;
    const certain = holds ? text.trimEnd() : text;
    this.#space = text.slice(certain.length);
    if (this.#state === "thought") this.#out.reasoning += certain;
    else this.#out.content += certain;
  }

  #name(tools: ToolSyntax): boolean {
    const at = this.#text.indexOf(tools.between);
    if (at < 0) return false;
    const [index, name] = [this.#calls++, this.#text.slice(0, at)];
    const piece: ToolCallPiece = { index, id: newId(), type: "function", function: { name } };
    this.#out.toolCalls.push(piece);
    this.#text = this.#text.slice(at + tools.between.length);
    this.#object = new JsonObjectEnd();
    return this.#enter("arguments");
  }

  #arguments(): boolean {
    const length = this.#object.feed(this.#text);
    if (length > 0) {
      const piece = { index: this.#calls - 1, function: { arguments: this.#text.slice(0, length) } };
      this.#out.toolCalls.push(piece);
    }
    this.#text = this.#text.slice(length);
    return this.#object.complete && this.#enter("after");
  }

  #after(tools: ToolSyntax): boolean {
    const id = tools.beforeId === null ? 0 : tools.beforeId.length + ID_LENGTH;
    const wanted = tools.after.length + id;
    if (this.#text.length < wanted) return false;
    this.#text = this.#text.slice(wanted);
    return this.#enter("more");
  }

  #more(tools: ToolSyntax): boolean {
    const again = tools.separator + tools.beforeName;
    if (this.#text.startsWith(again)) {
      this.#text = this.#text.slice(again.length);
      return this.#enter("name");
    }
    return again.startsWith(this.#text) ? false : this.#enter("done");
  }
}

/** Finds the end of a JSON object, given in pieces. */
class JsonObjectEnd {
  #depth = 0;
  #quoted = false;
  #escaped = false;
  complete = false;

  /** How many of these characters belong to the object. */
  feed(text: string): number {
    for (let i = 0; i < text.length; i++) {
      const character = text[i]!;
      if (this.#escaped) this.#escaped = false;
      else if (this.#quoted) {
        this.#escaped = character === "\\";
        this.#quoted = character !== '"';
      } else if (character === '"') this.#quoted = true;
      else if ("{[".includes(character)) this.#depth++;
      else if ("}]".includes(character)) this.#depth--;
      if (this.#depth === 0) {
        this.complete = true;
        return i + 1;
      }
    }
    return text.length;
  }
}

function empty(): Required<AnswerPiece> {
  return { content: "", reasoning: "", toolCalls: [] };
}

function newId(): string {
  const random = crypto.getRandomValues(new Uint8Array(ID_LENGTH));
  return Array.from(random, (byte) => ID_LETTERS[byte % ID_LETTERS.length]!).join("");
}

/** Length of the longest end of `text` that `mark` begins with. */
function overlap(text: string, mark: string): number {
  let n = Math.min(text.length, mark.length - 1);
  while (n > 0 && !mark.startsWith(text.slice(-n))) n--;
  return n;
}
