/** The tokens that a model says after a prompt, as the page of any browser asks for them. */

import * as sterna from "/dist/index.js";
import { loadNumbers } from "/page/numbers_text.js";

export async function answer(url, prompt, count) {
  const engine = await sterna.CreateEngine(url, { loadText: loadNumbers(1 << 20) });
  const { choices, usage } = await engine.completions.create({
    prompt, max_tokens: count, temperature: 0, logprobs: 2, ignore_eos: true,
  });
  await engine.unload();
  return { tokens: choices[0].logprobs.tokens.map(Number), usage };
}
