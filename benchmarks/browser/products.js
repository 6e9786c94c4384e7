/**
 * Kernels by themselves: what each pipeline takes to make, and products beside bare copies.
 *
 * Everything is run by turns, so that what disturbs one disturbs all, and told turn by turn. A
 * product is launched several times in one submission, as the launches of a step are: else
 * submitting and waiting are most of what is measured. Beside each product of a decode stand
 * copies that move its bytes, read and written, in as many launches.
 */
import { COPY } from "./floor.js";

const ROUNDS = 24, LONG = 4; // of all, and of what takes long enough to be steady
const BYTES = 8 << 20; // of a buffer: no product here reads more
const MOVED = 4 << 20; // in a submission, at least

export async function run(jobs, copies, features) {
  const adapter = await navigator.gpu.requestAdapter();
  const most = adapter.limits.maxStorageBuffersPerShaderStage;
  const device = await adapter.requestDevice({
    requiredFeatures: features, requiredLimits: { maxStorageBuffersPerShaderStage: most },
  });
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

  const bare = new Map();
  for (const sort of copies) {
    const code = COPY.replaceAll("SORT", sort).replace("WIDTH", "32768");
    const pipeline = await make(code, "main");
    bare.set(sort, { pipeline, bindings: bind(pipeline, buffers.slice(0, 2)) });
  }
  const told = [], ready = [];
  for (const { code, ...job } of jobs) {
    const begin = performance.now();
    const pipeline = await make(code, job.symbol);
    const found = { ...job, compile_ms: performance.now() - begin, ms: [], beside: {} };
    told.push(found);
    if (job.entry === undefined) continue;
    const resources = buffers.slice(0, job.buffers);
    if (job.dims.length > 0) {
      const sizes = device.createBuffer({ size: 256, usage: GPUBufferUsage.UNIFORM | GPUBufferUsage.COPY_DST });
      device.queue.writeBuffer(sizes, 0, new Int32Array(job.dims));
      resources.push(sizes);
    }
    const launches = job.entry === "decode" ? Math.ceil(MOVED / job.bytes) : 1;
    ready.push({ ms: found.ms, pipeline, bindings: bind(pipeline, resources), groups: job.groups, launches });
    if (job.entry !== "decode") continue;
    for (const [sort, copy] of bare) {
      const each = 2 * 64 * (sort === "u32" ? 4 : 16); // bytes of a group, read and written
      const groups = Math.round(job.bytes / each);
      const { ms } = (found.beside[sort] = { bytes: groups * each, ms: [] });
      ready.push({ ms, ...copy, groups, launches });
    }
  }
  for (let i = 0; i < ROUNDS; i++) {
    for (const job of ready) {
      if (i < LONG || job.launches > 1) job.ms.push(await timed(job));
    }
  }
  device.destroy();
  return told;
}
