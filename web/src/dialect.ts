/**
 * What a model's chat template says about the model: its tool calls, its thoughts, its roles.
 *
 * Found by rendering small conversations once, when the model is loaded.
 */

import type { Template } from "./chat_template.js";
import { rendered, thinks } from "./reasoning.js";
import { OWN, readSyntax, type ToolSyntax } from "./tool_syntax.js";

const PROBE = "Answer briefly, please.";

/** `thinks`: thoughts are marked; `hasSystem`: there are system messages. */
export interface Dialect {
  readonly tools: ToolSyntax;
  readonly thinks: boolean;
  readonly hasSystem: boolean;
}

/** Ask the template; without one, calls are written our own way. `specials`: token texts. */
export function readDialect(template: Template | null, specials: Iterable<string>): Dialect {
  if (template === null) return { tools: OWN, thinks: false, hasSystem: true };
  const messages = [
    { role: "system", content: PROBE },
    { role: "user", content: "Hello" },
  ];
  const hasSystem = rendered(template, messages)?.includes(PROBE) ?? false;
  return { tools: readSyntax(template, specials), thinks: thinks(template), hasSystem };
}
