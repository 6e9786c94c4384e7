/**
 * What an answer must look like, as a grammar in EBNF.
 *
 * In: a response format, or tools with the syntax of their calls; where the answer begins with regard
 * to thoughts. Out: a `Source`, or null where any text will do. Compiles nothing. See
 * engine/grammar_source.py of the Python package, whose answers these are.
 */

import { either, quoted, Rules, unlessFirst, until } from "./ebnf.js";
import { RequestError } from "./errors.js";
import { schemaBody } from "./json_schema.js";
import type { Offer, ToolFunction } from "./offer.js";
import type { ResponseFormat } from "./protocol.js";
import { CLOSE, OPEN, type Start } from "./reasoning.js";
import { regexBody } from "./regex.js";
import { ID_LENGTH, onlyFirst, triggerOf, type ToolSyntax } from "./tool_syntax.js";

const MAX_DEFINITION = 128 * 1024;
const SPACE = "[ \\n]{0,4}"; // between a thought and what follows it
const ANY = "[\\u0000-\\U0010ffff]*";

/** A grammar's text, and the field that it came from. */
export interface Source {
  readonly text: string;
  readonly what: "response_format" | "tools";
}

export function sourceOf(
  form: ResponseFormat | null,
  offer: Offer | null,
  syntax: ToolSyntax,
  start: Start,
): Source | null {
  const open = form === null || form.type === "text";
  if (offer === null && open) return null;
  const what = offer === null ? "response_format" : "tools";
  if (!open && offer === null && form.type === "grammar") {
    const written = ebnfOf(form);
    if (written !== null) {
      if (start !== "speech") {
        throw new RequestError("a grammar in ebnf does not go with thinking; switch it off", what);
      }
      return { text: written, what };
    }
  }
  const rules = new Rules();
  const answer = open ? null : answerBody(rules, form);
  const speech = offer === null ? answer! : toolsBody(rules, offer, syntax, answer, start);
  return { text: rules.text(thinking(rules, start, speech)), what };
}

/** A thought ends where its mark appears first. */
function thinking(rules: Rules, start: Start, rest: string): string {
  if (start === "speech") return rest;
  const after = until(rules, CLOSE, rules.add(`${SPACE} (${rest})`), false);
  return start === "thought" ? after : `(${quoted(OPEN)} ${after} | ${rest})`;
}

function toolsBody(
  rules: Rules,
  offer: Offer,
  syntax: ToolSyntax,
  answer: string | null,
  start: Start,
): string {
  const { several, beforeName, separator, end, begin } = syntax;
  const call = rules.add(either(offer.callable.map((tool) => callBody(rules, tool, syntax))));
  const again = several && offer.several ? `(${quoted(separator + beforeName)} ${call})*` : '""';
  const more = rules.add(`${call} ${again} ${quoted(end)}`);
  const opening = begin + beforeName;
  const calls = `${quoted(opening)} ${more}`;
  if (offer.must) return calls;
  if (answer !== null) return `(${calls} | ${answer})`;
  if (onlyFirst(syntax)) {
    if (start === "either") {
      throw new RequestError("this model's calls and thoughts cannot both be optional", "tools");
    }
    return unlessFirst(rules, opening, more);
  }
  const trigger = triggerOf(syntax);
  const rest = opening.startsWith(trigger) ? opening.slice(trigger.length) : opening;
  return until(rules, trigger, rules.add(`${quoted(rest)} ${more}`), true);
}

/** A tool's name, its arguments by its schema, and what is around them. */
function callBody(rules: Rules, tool: ToolFunction, syntax: ToolSyntax): string {
  const { between, after, beforeId } = syntax;
  const id = beforeId === null ? "" : `${quoted(beforeId)} [a-zA-Z0-9]{${ID_LENGTH},${ID_LENGTH}} `;
  return `${quoted(tool.name + between)} ${argumentsBody(rules, tool)} ${id}${quoted(after)}`;
}

/** Always an object; without parameters an empty one. */
function argumentsBody(rules: Rules, tool: ToolFunction): string {
  const where = `tools.${tool.name}.parameters`;
  const schema = tool.parameters ?? { properties: {}, additionalProperties: false };
  const type = schema["type"] ?? "object";
  if (type !== "object") {
    throw new RequestError(`${where} has the type ${JSON.stringify(type)}, possible is "object"`, where);
  }
  return schemaBody(rules, { type: "object", ...schema }, where);
}

function answerBody(rules: Rules, form: ResponseFormat): string {
  switch (form.type) {
    case "json_object":
      return schemaBody(rules, ownSchema(form.schema), "response_format.schema");
    case "json_schema": {
      const schema = form.json_schema?.schema ?? true;
      return schemaBody(rules, schema, "response_format.json_schema.schema");
    }
    case "grammar": {
      const { grammar } = form;
      const where = "response_format.grammar.definition";
      if (typeof grammar === "object" && grammar.syntax === "regex") {
        return regexBody(checked(grammar.definition), where, false);
      }
      throw new RequestError(
        "response_format.grammar in ebnf does not go with tools; give a regex or a schema",
        "response_format",
      );
    }
    case "text":
      return ANY;
    default:
      throw new RequestError(
        `response_format.type is ${JSON.stringify((form as { type?: unknown }).type)}, possible are ` +
          "text, json_object, json_schema, grammar",
        "response_format",
      );
  }
}

/** WebLLM's callers give a schema as text with `json_object`. */
function ownSchema(text: string | undefined): unknown {
  if (text === undefined) return { type: "object" };
  try {
    return JSON.parse(text);
  } catch {
    throw new RequestError("response_format.schema is not JSON", "response_format.schema");
  }
}

/** The caller's own EBNF; null for another syntax that can be turned into it. */
function ebnfOf(form: ResponseFormat & { type: "grammar" }): string | null {
  const { grammar } = form;
  if (typeof grammar === "string") return checked(grammar);
  if (grammar.syntax === "ebnf") return checked(grammar.definition);
  if (grammar.syntax === "regex") return null;
  throw new RequestError(
    `response_format.grammar.syntax is ${JSON.stringify(grammar.syntax)}, possible in a browser are ` +
      "ebnf and regex",
    "response_format",
  );
}

function checked(definition: unknown): string {
  const length = typeof definition === "string" ? definition.trim().length : 0;
  if (length > 0 && length <= MAX_DEFINITION) return definition as string;
  throw new RequestError(
    `response_format.grammar has ${length} characters, possible are 1 to ${MAX_DEFINITION}`,
    "response_format",
  );
}
