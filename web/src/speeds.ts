/** What the last answer took, as a sentence. */

import type { Usage } from "./protocol.js";

export function speeds(usage: Usage | null): string {
  if (usage === null) return "no answer yet";
  const { prefill_tokens_per_s: prefill, decode_tokens_per_s: decode } = usage.extra;
  return `prefill: ${prefill.toFixed(1)} tokens/s, decode: ${decode.toFixed(1)} tokens/s`;
}
