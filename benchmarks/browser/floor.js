/**
 * What the adapter can do at best: bytes a second of a bare copy in WGSL.
 */

export const COPY = `
@group(0) @binding(0) var<storage, read_write> a: array<SORT>;
@group(0) @binding(1) var<storage, read_write> b: array<SORT>;
@compute @workgroup_size(64) fn main(
  @builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32,
) {
  let i = (group.x + group.y * WIDTHu) * 64u + thread;
  b[i] = a[i];
}`;
const WIDTH = 32768; // groups of a row: adapters take 65535

/** Bytes read and written a second, best of `rounds`, copying `mib` MiB. */
export async function copy(sort, mib = 16, rounds = 5) {
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const size = mib << 20;
  const module = device.createShaderModule({ code: COPY.replaceAll("SORT", sort).replace("WIDTH", String(WIDTH)) });
  const pipeline = await device.createComputePipelineAsync({ layout: "auto", compute: { module, entryPoint: "main" } });
  const buffers = [0, 1].map(() => device.createBuffer({ size, usage: GPUBufferUsage.STORAGE }));
  const bindings = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
  });
  const groups = size / (sort === "u32" ? 4 : 16) / 64;
  let best = Infinity;
  for (let i = 0; i <= rounds; i++) {
    const begin = performance.now();
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, bindings);
    pass.dispatchWorkgroups(Math.min(groups, WIDTH), Math.ceil(groups / WIDTH));
    pass.end();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    if (i > 0) best = Math.min(best, performance.now() - begin);
  }
  const name = [adapter.info.vendor, adapter.info.architecture].join(" ");
  device.destroy();
  return { name, bytes_per_s: (2 * size) / (best / 1000) };
}
