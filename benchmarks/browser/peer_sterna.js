/** Sterna's own runtime, as a page would load it; answers have their length because ends are ignored. */

export async function open(folder) {
  const { CreateEngine } = await import("/dist/index.js");
  const { Device } = await import("/dist/device.js");
  const detail = {};
  const compile = Device.prototype.compile;
  Device.prototype.compile = async function (...given) {
    const begin = performance.now();
    const made = await compile.apply(this, given);
    return Object.assign(detail, { pipelines: new Set(made.values()).size, compile_s: (performance.now() - begin) / 1000 }) && made;
  };
  const engine = await CreateEngine(folder);
  return {
    detail,
    async answer(prompt, count) {
      await engine.resetChat();
      await engine.completions.create({ prompt, max_tokens: count, temperature: 0, ignore_eos: true });
      const { prompt_tokens, completion_tokens, extra } = engine.runtimeStats();
      const rest = extra.time_per_output_token_s * (completion_tokens - 1);
      return { prompt: prompt_tokens, tokens: completion_tokens, first: extra.time_to_first_token_s, rest };
    },
  };
}
