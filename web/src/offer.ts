/**
 * Which tools an answer may or must call, out of a request's `tools` and `tool_choice`.
 *
 * RequestError for choices that cannot be met. Knows no templates and no grammars.
 */

import { RequestError } from "./errors.js";
import type { ChatRequest, Tool } from "./protocol.js";
import type { Json } from "./text_files.js";

export type ToolFunction = Tool["function"];

const NAME = /^[a-zA-Z0-9_.-]{1,64}$/;

/** The model is shown all tools and may call those in `callable`. */
export interface Offer {
  readonly shown: readonly ToolFunction[];
  readonly callable: readonly ToolFunction[];
  readonly must: boolean;
  readonly several: boolean;
}

/** null where no tool can be called; with `tool_choice` none the model is not even shown them. */
export function offerOf(request: ChatRequest): Offer | null {
  const tools = (request.tools ?? []).map(checked);
  const choice = request.tool_choice ?? null;
  if (tools.length === 0) {
    refuseWithoutTools(request);
    return null;
  }
  const names = tools.map((tool) => tool.name);
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new RequestError(`tools has several named "${twice}"`, "tools");
  const several = request.parallel_tool_calls !== false;
  if (choice === "none") return null;
  if (choice === null || choice === "auto" || choice === "required") {
    return { shown: tools, callable: tools, must: choice === "required", several };
  }
  const wanted = choice.type === "function" ? choice.function?.name : undefined;
  const named = tools.filter((tool) => tool.name === wanted);
  if (named.length === 0) {
    const found = wanted ?? JSON.stringify(choice).slice(0, 80);
    throw new RequestError(
      `tool_choice names the function "${found}", tools has ${names.join(", ")}`,
      "tool_choice",
    );
  }
  return { shown: tools, callable: named, must: true, several: false };
}

/** Tools as templates take them: OpenAI's objects, without what was not given. */
export function plainTools(tools: readonly ToolFunction[]): Json[] {
  return tools.map((tool) => {
    const { name, description, parameters } = tool;
    const given: Record<string, unknown> = { name };
    if (description !== null && description !== undefined) given["description"] = description;
    given["parameters"] = parameters ?? { type: "object", properties: {} };
    return { type: "function", function: given };
  });
}

function checked(tool: Tool): ToolFunction {
  const name: unknown = tool?.function?.name;
  if (tool?.type !== "function" || typeof name !== "string" || !NAME.test(name)) {
    throw new RequestError(
      'tools must be {type: "function", function: {name, ...}}, names of letters, digits, _ . -',
      "tools",
    );
  }
  return tool.function;
}

function refuseWithoutTools(request: ChatRequest): void {
  const choice = request.tool_choice ?? null;
  if (choice !== null && choice !== "none" && choice !== "auto") {
    throw new RequestError("tool_choice asks for a call, but there are no tools", "tool_choice");
  }
  if (request.parallel_tool_calls !== null && request.parallel_tool_calls !== undefined) {
    throw new RequestError("parallel_tool_calls needs tools", "parallel_tool_calls");
  }
}
