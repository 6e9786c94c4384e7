/**
 * A request's messages as the plain data that chat templates take.
 *
 * Where the template knows no tools they are written into the conversation: what they are and how to
 * call them into the system message, calls and results into the turns. Renders nothing.
 */

import type { Dialect } from "./dialect.js";
import { RequestError } from "./errors.js";
import { plainTools, type ToolFunction } from "./offer.js";
import { pythonJson } from "./python_json.js";
import type { ChatMessage, TextPart } from "./protocol.js";
import { isObject } from "./text_files.js";
import { OWN, written, type ToolSyntax } from "./tool_syntax.js";

export type Plain = Record<string, unknown>;

const ROLES = ["system", "developer", "user", "assistant", "tool"];

/** Messages for the template; `tools` are those that it does not show by itself. */
export function plainMessages(
  messages: readonly ChatMessage[],
  tools: readonly ToolFunction[],
  dialect: Dialect,
): Plain[] {
  if (!Array.isArray(messages) || messages.length === 0) {
    throw new RequestError("messages is empty: send at least one message", "messages");
  }
  const names = new Map<string, string>();
  const plain = messages.map((message, i) => plainMessage(i, message, dialect.tools, names));
  if (dialect.tools.native) return plain;
  const merged = mergedResults(plain);
  return tools.length > 0 ? withTools(merged, tools, dialect) : merged;
}

/** One message; `names` collects the tools' names by the ids of their calls. */
function plainMessage(
  index: number,
  message: ChatMessage,
  syntax: ToolSyntax,
  names: Map<string, string>,
): Plain {
  const where = `messages[${index}]`;
  if (!isObject(message) || !ROLES.includes(String(message.role))) {
    throw new RequestError(`${where} has no role out of ${ROLES.join(", ")}`, `${where}.role`);
  }
  const named = message.name ? { name: message.name } : {};
  switch (message.role) {
    case "assistant":
      for (const call of message.tool_calls ?? []) names.set(call.id, call.function.name);
      return { ...assistant(where, message, syntax), ...named };
    case "tool":
      return result(where, message, syntax, names);
    default: {
      const role = message.role === "developer" ? "system" : message.role;
      return { role, content: textOf(where, message.content), ...named };
    }
  }
}

function assistant(where: string, message: ChatMessage, syntax: ToolSyntax): Plain {
  const calls = message.tool_calls ?? [];
  if ((message.content ?? null) === null && calls.length === 0) {
    throw new RequestError(`${where} has neither content nor tool calls`, `${where}.content`);
  }
  const plain: Plain = { role: "assistant", content: textOf(where, message.content ?? "") };
  if (message.reasoning_content) plain["reasoning_content"] = message.reasoning_content;
  if (calls.length === 0) return plain;
  const parsed = calls.map((call, i) =>
    argumentsOf(`${where}.tool_calls[${i}].function.arguments`, call.function.arguments),
  );
  if (!syntax.native) {
    const texts = calls.map((call) => [call.function.name, call.function.arguments] as const);
    plain["content"] = [plain["content"], written(OWN, texts)].filter(Boolean).join("\n");
    return plain;
  }
  plain["tool_calls"] = calls.map((call, i) => ({
    id: call.id,
    type: "function",
    function: {
      name: call.function.name,
      arguments: syntax.textArguments ? call.function.arguments : parsed[i],
    },
  }));
  return plain;
}

function argumentsOf(where: string, text: string): Plain {
  let found: unknown = null;
  try {
    found = JSON.parse(text);
  } catch {
    // told below
  }
  if (isObject(found)) return found;
  throw new RequestError(`${where} is no JSON object`, where);
}

function result(
  where: string,
  message: ChatMessage,
  syntax: ToolSyntax,
  names: ReadonlyMap<string, string>,
): Plain {
  const content = textOf(where, message.content);
  if (typeof message.tool_call_id !== "string") {
    throw new RequestError(`${where} needs the tool_call_id that it answers`, where);
  }
  if (!syntax.native) {
    const text = `<tool_response>\n${content}\n</tool_response>`;
    return { role: "user", content: text, result: true };
  }
  const name = message.name ?? names.get(message.tool_call_id);
  const plain = { role: "tool", content, tool_call_id: message.tool_call_id };
  return name ? { ...plain, name } : plain;
}

/** Results that follow each other are one turn: many templates want turns to alternate. */
function mergedResults(messages: readonly Plain[]): Plain[] {
  const merged: Plain[] = [];
  for (const message of messages) {
    const last = merged.at(-1);
    if (message["result"] && last?.["result"]) {
      last["content"] = `${String(last["content"])}\n${String(message["content"])}`;
    } else merged.push(message);
  }
  return merged.map(({ result: _, ...message }) => message);
}

/** Put the tools into the first system message, or before the first words of the user. */
function withTools(messages: Plain[], tools: readonly ToolFunction[], dialect: Dialect): Plain[] {
  const text = described(tools);
  const role = dialect.hasSystem ? "system" : "user";
  const first = messages.find((message) => message["role"] === role);
  if (first === undefined) return [{ role, content: text }, ...messages];
  const parts = role === "system" ? [first["content"], text] : [text, first["content"]];
  first["content"] = parts.join("\n\n");
  return messages;
}

function described(tools: readonly ToolFunction[]): string {
  return [
    "You can call these functions, given with JSON schemas of their arguments:",
    ...plainTools(tools).map((tool) => pythonJson(tool["function"], ",", ":")),
    "To call one, answer with its name and its arguments like this:\n" +
      written(OWN, [["NAME", "{...}"]]),
  ].join("\n");
}

/** The text of a message's content. */
function textOf(where: string, content: string | TextPart[] | null | undefined): string {
  if (typeof content === "string") return content;
  const parts: unknown[] = Array.isArray(content) ? content : [null];
  return parts
    .map((part) => {
      if (isObject(part) && part["type"] === "text" && typeof part["text"] === "string") {
        return part["text"];
      }
      throw new RequestError(`${where}.content must be text: this takes nothing else`, where);
    })
    .join("");
}
