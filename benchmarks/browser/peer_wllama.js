/**
 * wllama: llama.cpp in WebAssembly, as it chooses: on WebGPU where the adapter has f16, and as many
 * threads as it takes by itself. Its prompts are text: in the benchmark's vocabulary a letter is a
 * token.
 */

const NPM = "/npm/@wllama/wllama/esm";

export async function open(file) {
  const { Wllama } = await import(`${NPM}/index.js`);
  const told = [];
  const tell = (...words) => told.push(words.join(" "));
  const logger = { debug: tell, log: tell, warn: tell, error: tell };
  const wllama = new Wllama({ default: `${NPM}/wasm/wllama.wasm` }, { logger });
  await wllama.loadModelFromUrl(new URL(file, location.href).href, { n_ctx: 512 });
  return {
    detail: { threads: wllama.getNumThreads(), told: told.filter((line) => /model buffer|webgpu/i.test(line)) },
    async answer(prompt, count) {
      const letters = prompt.map((id) => String.fromCharCode(97 + (id % 26))).join("");
      const options = { max_tokens: count, temperature: 0, ignore_eos: true, cache_prompt: false, stream: true };
      let timings = null;
      for await (const chunk of await wllama.createCompletion({ prompt: letters, ...options })) {
        timings = chunk.timings ?? timings;
      }
      const { prompt_ms, predicted_ms, predicted_n, prompt_n } = timings;
      // What it calls predicted are all tokens, of which the first comes from the prompt's step.
      return { prompt: prompt_n, tokens: predicted_n, first: prompt_ms / 1000, rest: predicted_ms / 1000 };
    },
  };
}
