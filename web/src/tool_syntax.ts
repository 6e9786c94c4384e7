/**
 * How a model writes tool calls: read off its chat template, not off its name.
 *
 * The template is asked to render an answer with calls of tools nobody has, and the text around
 * their names and arguments is the syntax, which grammars constrain to and parsers take apart; one
 * of our own where the template writes no calls. See engine/tool_syntax.py. Knows no tools.
 */

import type { Template } from "./chat_template.js";
import { CLOSE, OPEN, rendered } from "./reasoning.js";
import type { Json } from "./text_files.js";

export const ID_LENGTH = 9; // what Mistral's templates insist on, and nobody else minds
const NAMES = ["probe_of_tools", "probe_of_more"] as const;
const VALUES = ["probed value", "second value"] as const;
const IDS = ["pr0be0001", "pr0be0002"] as const;

/**
 * An answer's calls: begin, call, (separator, call)*, end; a call: beforeName, the name, between,
 * the arguments as a JSON object, [beforeId, an id,] after. `native`: the template shows tools and
 * results itself. `textArguments`: it wants the arguments of earlier calls as text.
 */
export interface ToolSyntax {
  readonly begin: string;
  readonly beforeName: string;
  readonly between: string;
  readonly after: string;
  readonly separator: string;
  readonly end: string;
  readonly beforeId: string | null;
  readonly several: boolean;
  readonly native: boolean;
  readonly textArguments: boolean;
}

export const OWN: ToolSyntax = {
  begin: "",
  beforeName: '<tool_call>\n{"name": "',
  between: '", "arguments": ',
  after: "}\n</tool_call>",
  separator: "\n",
  end: "",
  beforeId: null,
  several: true,
  native: false,
  textArguments: false,
};

/** What shows that calls begin: the mark before the first one, or all that is before it. */
export function triggerOf(syntax: ToolSyntax): string {
  const opening = syntax.begin + syntax.beforeName;
  return /^(\[[A-Z_]+\]|<[^<>\s]+>)/.exec(opening)?.[0] ?? opening;
}

/** Whether there is no mark, so that only the beginning of an answer can be a call. */
export function onlyFirst(syntax: ToolSyntax): boolean {
  return triggerOf(syntax) === syntax.begin + syntax.beforeName;
}

/** All text of the syntax, to find special tokens in. */
export function literalsOf(syntax: ToolSyntax): string {
  const { begin, beforeName, between, beforeId, after, separator, end } = syntax;
  return [begin, beforeName, between, beforeId ?? "", after, separator, end].join("\0");
}

/** The text of calls, given as names and JSON arguments; without ids. */
export function written(syntax: ToolSyntax, calls: readonly (readonly [string, string])[]): string {
  const texts = calls.map(([n, a]) => syntax.beforeName + n + syntax.between + a + syntax.after);
  return syntax.begin + texts.join(syntax.separator) + syntax.end;
}

/** The syntax that a template writes calls in, or `OWN`. `specials`: the special tokens. */
export function readSyntax(template: Template | null, specials: Iterable<string>): ToolSyntax {
  if (template === null) return OWN;
  const shown = rendered(template, [USER], { tools: [TOOL] }) ?? "";
  if (!shown.includes(NAMES[0])) return OWN;
  const texts = [...specials].filter((text) => text !== "");
  for (const textArguments of [false, true]) {
    for (const several of [true, false]) {
      const found = probed(template, texts, textArguments, several);
      if (found !== null) return { ...found, textArguments, several };
    }
  }
  return OWN;
}

const USER: Json = { role: "user", content: "Hello" };
const TOOL: Json = {
  type: "function",
  function: {
    name: NAMES[0],
    description: "A probe.",
    parameters: { type: "object", properties: { probe: { type: "string" } } },
  },
};

/** Render one or two calls and take the text apart; null where that does not work. */
function probed(
  template: Template,
  specials: readonly string[],
  textArguments: boolean,
  several: boolean,
): ToolSyntax | null {
  const calls = (several ? [0, 1] : [0]).map((i) => call(i, textArguments));
  const answer: Json = { role: "assistant", content: "", tool_calls: calls };
  const prompt = rendered(template, [USER], { tools: [TOOL] });
  const text = rendered(template, [USER, answer], { tools: [TOOL], addGenerationPrompt: false });
  const body = prompt === null || text === null ? null : afterPrompt(prompt, text);
  return body === null ? null : takenApart(body, calls.length, specials);
}

function call(index: number, textArguments: boolean): Json {
  const probe = { probe: VALUES[index]! };
  const args = textArguments ? `{"probe": "${VALUES[index]!}"}` : probe;
  return { id: IDS[index]!, type: "function", function: { name: NAMES[index]!, arguments: args } };
}

/** What the answer adds to the prompt, without an empty thought. */
function afterPrompt(prompt: string, text: string): string | null {
  const end = prompt.trimEnd();
  const unthought = end.endsWith(OPEN) ? end.slice(0, -OPEN.length) : end;
  for (const begin of [prompt, unthought]) {
    if (text.startsWith(begin)) {
      return text.slice(begin.length).replace(new RegExp(`^\\s*${OPEN}\\s*${CLOSE}\\s*`), "");
    }
  }
  return null;
}

function takenApart(body: string, count: number, specials: readonly string[]): ToolSyntax | null {
  const first = placesOf(body, 0);
  const last = placesOf(body, count - 1);
  if (first === null || last === null) return null;
  const tail = beforeSpecial(body.slice(last.end), specials).trimEnd();
  const opening = body.slice(0, first.name);
  const rest = { native: true, textArguments: false, several: true, beforeId: first.beforeId };
  const { between } = first;
  if (count === 1) {
    const single = { begin: "", beforeName: opening, after: tail, separator: "", end: "" };
    return opening === "" ? null : { ...rest, ...single, between };
  }
  const middle = body.slice(first.end, last.name);
  const after = common(middle, tail);
  const behind = middle.slice(after.length);
  const beforeName = reversed(common(reversed(behind), reversed(opening)));
  const alike = between === last.between && first.beforeId === last.beforeId;
  if (beforeName === "" || !alike) return null;
  return {
    ...rest,
    begin: opening.slice(0, opening.length - beforeName.length),
    beforeName,
    between,
    after,
    separator: behind.slice(0, behind.length - beforeName.length),
    end: tail.slice(after.length),
  };
}

/** Where a probe's name begins and its last slot ends, and the text between the slots. */
interface Places {
  name: number;
  end: number;
  between: string;
  beforeId: string | null;
}

function placesOf(body: string, index: number): Places | null {
  const pattern = new RegExp(
    `${NAMES[index]!}(?<between>[^\\0]*?)\\{\\s*"probe":\\s*"${VALUES[index]!}"\\s*\\}` +
      `(?:(?<beforeId>[^{}\\0]*?)${IDS[index]!})?`,
  );
  const found = pattern.exec(body);
  if (found === null) return null;
  const beforeId = found.groups?.["beforeId"] ?? null;
  if (body.includes(IDS[index]!) && beforeId === null) return null;
  const end = found.index + found[0].length;
  return { name: found.index, end, between: found.groups?.["between"] ?? "", beforeId };
}

/** What both begin with. */
function common(a: string, b: string): string {
  let n = 0;
  while (n < Math.min(a.length, b.length) && a[n] === b[n]) n++;
  return a.slice(0, n);
}

function reversed(text: string): string {
  return [...text].reverse().join("");
}

function beforeSpecial(text: string, specials: readonly string[]): string {
  const places = specials.map((special) => text.indexOf(special)).filter((at) => at >= 0);
  return places.length === 0 ? text : text.slice(0, Math.min(...places));
}
