/** Sterna's own runtime, as a page would load it; answers have their length because ends are ignored. */

export async function open(folder) {
  const { CreateEngine } = await import("/dist/index.js");
  const { Device } = await import("/dist/device.js");
  const { Pace } = await import("/dist/pace.js");
  const detail = { pipelines: 0, compile_s: 0, late_pipelines: 0, late_compile_s: 0, submissions: 0, longest_submission_ms: 0 };
  const { compile } = Device.prototype;
  const { took } = Pace.prototype;
  Device.prototype.compile = async function (...given) {
    const begin = performance.now();
    const made = await compile.apply(this, given);
    const kind = detail.pipelines === 0 ? "" : "late_"; // those of drawn tokens come last
    detail[`${kind}pipelines`] = new Set(made.values()).size;
    detail[`${kind}compile_s`] = (performance.now() - begin) / 1000;
    return made;
  };
  Pace.prototype.took = function (launches, ms) {
    detail.submissions++;
    detail.longest_submission_ms = Math.max(detail.longest_submission_ms, ms);
    return took.call(this, launches, ms);
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
