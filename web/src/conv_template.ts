/**
 * Messages to a prompt, through the `conv_template` object that MLC's model folders carry.
 *
 * In: the object from mlc-chat-config.json and messages of plain text; out: ids to put first and the
 * text after them. Follows mlc-llm's protocol/conversation_protocol.py, as text/conv_template.py of
 * the Python package does; `{function_string}` becomes nothing. Does not know tokenizers.
 */

import { ArtifactError, RequestError } from "./errors.js";
import { isObject, type Json } from "./text_files.js";

const FUNCTION = "{function_string}";
const SYSTEM = "{system_message}";
const END_OF_THOUGHT = "</think>";

interface ConvTemplate {
  roles: Readonly<Record<string, string>>;
  seps: readonly string[];
  systemTemplate: string;
  systemMessage: string;
  systemPrefix: readonly number[];
  addRoleAfterSystem: boolean;
  roleTemplates: Readonly<Record<string, string>>;
  turns: readonly Turn[];
  contentSep: string;
  emptySep: string;
  stripReasoning: boolean;
}

type Turn = readonly [role: string, content: string | null];

/** ArtifactError for an object that is no template, RequestError for what it cannot express. */
export function renderConv(template: Json, messages: readonly Json[]): [number[], string] {
  const conv = read(template);
  const given = messages.map(({ role, content }) => [String(role), String(content ?? "")] as const);
  const system = given.filter(([role]) => role === "system").map(([, text]) => text).join("");
  let turns: Turn[] = [...conv.turns, ...given.filter(([role]) => role !== "system")];
  if (conv.stripReasoning) turns = withoutReasoning(turns);
  turns.push(["assistant", null]);
  const parts = around(conv.systemTemplate, SYSTEM, system || conv.systemMessage);
  const bareFirst = !conv.addRoleAfterSystem && parts.some((part) => part !== "");
  turns.forEach((turn, i) => parts.push(...turnParts(conv, turn, bareFirst && i === 0)));
  return [[...conv.systemPrefix], withoutFunctions(parts)];
}

/** Template texts at even places, contents at odd ones. */
function turnParts(conv: ConvTemplate, [role, content]: Turn, bare: boolean): string[] {
  const name = conv.roles[role];
  if (name === undefined) {
    throw new RequestError(
      `the model's conversation template has no role "${role}"; it has ` +
        Object.keys(conv.roles).join(", "),
      "messages",
    );
  }
  if (content === null) return [name + conv.emptySep, ""];
  const end = role === "assistant" ? conv.seps.at(-1)! : conv.seps[0]!;
  const placeholder = `{${role}_message}`;
  const prefix = bare ? "" : name + conv.contentSep;
  return around(prefix + (conv.roleTemplates[role] ?? placeholder) + end, placeholder, content);
}

/** [text, content, text, content, ..., text, ""]: an even number of parts. */
function around(template: string, placeholder: string, content: string): string[] {
  const parts = template.split(placeholder).flatMap((text) => [text, content]);
  parts[parts.length - 1] = "";
  return parts;
}

/** Only the templates' own `{function_string}` counts: a user's text cannot summon tools. */
function withoutFunctions(parts: readonly string[]): string {
  return parts.map((part, i) => (i % 2 === 0 ? part.split(FUNCTION).join("") : part)).join("");
}

/** Assistant turns before the last user turn keep what follows their last `</think>`. */
function withoutReasoning(turns: readonly Turn[]): Turn[] {
  const last = turns.findLastIndex(([role]) => role === "user");
  return turns.map(([role, content], i) => {
    if (role !== "assistant" || i >= last || content === null) return [role, content];
    return [role, content.split(END_OF_THOUGHT).at(-1)!.replace(/^\n+/, "")];
  });
}

function read(template: Json): ConvTemplate {
  const fail = (what: string): never => {
    throw new ArtifactError(`conv_template is no conversation template: ${what}`);
  };
  const texts = (value: unknown, what: string): Record<string, string> => {
    const found = isObject(value) ? value : fail(`${what} is no object`);
    if (!Object.values(found).every((text) => typeof text === "string")) fail(`${what} holds no text`);
    return found as Record<string, string>;
  };
  const text = (key: string, missing: string): string => {
    const value = template[key] ?? missing;
    return typeof value === "string" ? value : fail(`${key} is no text`);
  };
  const roles = texts(template["roles"], "roles");
  const seps: unknown[] = [template["seps"]].flat();
  if (!("user" in roles && "assistant" in roles)) fail("it lacks the roles user and assistant");
  if (seps.length === 0 || seps.length > 2 || !seps.every((sep) => typeof sep === "string")) {
    fail("seps is not one or two texts");
  }
  const prefix: unknown[] = [template["system_prefix_token_ids"] ?? []].flat();
  if (!prefix.every((id) => Number.isSafeInteger(id))) fail("system_prefix_token_ids holds no ids");
  const turns = [template["messages"] ?? []].flat(1) as unknown[];
  if (!turns.every((turn) => Array.isArray(turn) && turn.length === 2)) fail("messages is no list");
  return {
    roles,
    seps: seps as string[],
    systemTemplate: text("system_template", SYSTEM),
    systemMessage: text("system_message", ""),
    systemPrefix: prefix as number[],
    addRoleAfterSystem: template["add_role_after_system_message"] !== false,
    roleTemplates: texts(template["role_templates"] ?? {}, "role_templates"),
    turns: turns as Turn[],
    contentSep: text("role_content_sep", ""),
    emptySep: text("role_empty_sep", ""),
    stripReasoning: template["strip_reasoning_in_history"] === true,
  };
}
