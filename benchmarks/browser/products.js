/**
 * Kernels by themselves: what each pipeline takes to make, and products beside bare copies.
 *
 * Everything is run by turns, so that what disturbs one disturbs all, and counts at its best. A
 * product is launched as often in one submission, as the launches of a step are, as makes it read
 * what a copy reads: else submitting and waiting are most of what is measured.
 */
import { COPY } from "./floor.js";

const ROUNDS = 8;
const BYTES = 8 << 20; // of a buffer: no product here reads more
const COPIED = 4 << 20;

export async function run(jobs, copies) {
  const adapter = await navigator.gpu.requestAdapter();
  const most = adapter.limits.maxStorageBuffersPerShaderStage;
  const device = await adapter.requestDevice({ requiredLimits: { maxStorageBuffersPerShaderStage: most } });
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
  const buffers = Array.from({ length: most }, () => device.createBuffer({ size: BYTES, usage }));
  const make = (code, entryPoint) => {
    const module = device.createShaderModule({ code });
    return device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint } });
  };
  const bind = (pipeline, resources) => device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: resources.map((buffer, binding) => ({ binding, resource: { buffer } })),
  });
  const timed = async ({ pipeline, bindings, groups, launches }) => {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindings);
    for (let i = 0; i < launches; i++) {
      pass.dispatchWorkgroups(Math.min(groups, 32768), Math.ceil(groups / 32768));
    }
    pass.end();
    const begin = performance.now();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    return (performance.now() - begin) / launches;
  };

  const told = [], ready = [];
  for (const { code, ...job } of jobs) {
    const begin = performance.now();
    const pipeline = await make(code, job.symbol);
    const found = { ...job, compile_ms: performance.now() - begin, ms: Infinity };
    told.push(found);
    if (job.entry === undefined) continue;
    const resources = buffers.slice(0, job.buffers);
    if (job.dims.length > 0) {
      const sizes = device.createBuffer({ size: 256, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
      device.queue.writeBuffer(sizes, 0, new Int32Array(job.dims));
      resources.push(sizes);
    }
    const launches = job.entry === "decode" ? Math.ceil(COPIED / job.bytes) : 1;
    ready.push({ found, pipeline, bindings: bind(pipeline, resources), groups: job.groups, launches });
  }
  const moved = copies.map((sort) => ({ sort, bytes: 2 * COPIED, ms: Infinity }));
  for (const found of moved) {
    const code = COPY.replaceAll("SORT", found.sort).replace("WIDTH", "32768");
    const pipeline = await make(code, "main");
    const groups = COPIED / (found.sort === "u32" ? 4 : 16) / 64;
    ready.push({ found, pipeline, bindings: bind(pipeline, buffers.slice(0, 2)), groups, launches: 1 });
  }
  for (let i = 0; i < ROUNDS; i++) {
    for (const job of ready) {
      if (i > 2 && job.found.entry === "prefill") continue; // long enough to be steady
      job.found.ms = Math.min(job.found.ms, await timed(job));
    }
  }
  device.destroy();
  return { jobs: told, copies: moved };
}
