/**
 * Thinking: whether a model writes `<think>`, and where an answer begins with regard to it.
 *
 * In: a chat template, asked by rendering small conversations; and each rendered prompt.
 */

import type { RenderOptions, Template } from "./chat_template.js";
import type { Json } from "./text_files.js";

export const OPEN = "<think>";
export const CLOSE = "</think>";

/** Where an answer begins: nothing is thought, inside a thought, or the model may open one first. */
export type Start = "speech" | "thought" | "either";

const USER: Json = { role: "user", content: "Hello" };

/** Whether the template knows thoughts: it writes their marks, or takes thoughts out. */
export function thinks(template: Template): boolean {
  const content = `${OPEN}\nthe thought\n${CLOSE}\n\nthe answer`;
  const history = rendered(template, [USER, { role: "assistant", content }, USER]) ?? "";
  if (history.includes("the answer") && !history.includes("the thought")) return true;
  const asked: Json[] = [{}, { enable_thinking: false }, { enable_thinking: true }];
  return asked.some((extra) => {
    const end = (rendered(template, [USER], { extra }) ?? "").trimEnd();
    return end.endsWith(OPEN) || end.endsWith(CLOSE);
  });
}

/** Where the answer to a rendered prompt begins; `known`: the model's template thinks. */
export function startOf(prompt: string, known: boolean): Start {
  const end = prompt.trimEnd();
  if (!known || end.endsWith(CLOSE)) return "speech";
  return end.endsWith(OPEN) ? "thought" : "either";
}

/** The text, or null where the template refuses. */
export function rendered(
  template: Template,
  messages: readonly Json[],
  options: RenderOptions = {},
): string | null {
  try {
    return template.render(messages, options);
  } catch {
    return null;
  }
}
