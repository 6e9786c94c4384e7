/** transformers.js on WebGPU (ONNX Runtime): q4 weights, f32 activations, as adapters without f16 take. */

const NPM = "/npm/@huggingface/transformers/dist/transformers.min.js";

export async function open(folder) {
  const { AutoModelForCausalLM, Tensor, env } = await import(NPM);
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = "/";
  env.backends.onnx.wasm.wasmPaths = "/npm/onnxruntime-web/dist/";
  const model = await AutoModelForCausalLM.from_pretrained(folder, { dtype: "q4", device: "webgpu" });
  return {
    detail: {},
    async answer(prompt, count) {
      const ids = BigInt64Array.from(prompt, BigInt);
      const shape = [1, prompt.length];
      const times = [];
      const streamer = { put: () => times.push(performance.now()), end: () => undefined };
      const begin = performance.now();
      const output = await model.generate({
        inputs: new Tensor("int64", ids, shape),
        attention_mask: new Tensor("int64", ids.map(() => 1n), shape),
        max_new_tokens: count, min_new_tokens: count, do_sample: false, streamer,
      });
      const made = times.slice(1); // the first is the prompt
      return {
        prompt: prompt.length,
        tokens: output.dims[1] - prompt.length,
        first: (made[0] - begin) / 1000,
        rest: (made.at(-1) - made[0]) / 1000,
      };
    },
  };
}
