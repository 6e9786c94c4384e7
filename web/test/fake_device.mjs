/**
 * A device without a GPU, and its clock: a launch takes the milliseconds that are said of its
 * kernel, and nothing else takes any. What was submitted and compiled is written down.
 */

export class FakeDevice {
  now = 0;
  submissions = []; // the symbols of each
  times = []; // ms of each
  read_bytes = [];
  compiled = []; // symbols, as they were asked for
  refused = null; // a symbol that does not compile
  slower = () => 1; // what a submission's time is multiplied by
  held = Promise.resolve(); // what compiling a drawing kernel waits for

  constructor(costs, wait = 0) {
    this.costs = costs;
    this.wait = wait;
  }

  clock = () => this.now;

  gpu = {
    createBindGroup: (wanted) => wanted,
    createCommandEncoder: () => {
      const symbols = [];
      let symbol = null;
      const pass = {
        setPipeline: (pipeline) => (symbol = pipeline.symbol),
        setBindGroup: () => undefined,
        dispatchWorkgroups: () => symbols.push(symbol),
        end: () => undefined,
      };
      return { beginComputePass: () => pass, copyBufferToBuffer: () => undefined, finish: () => symbols };
    },
    queue: {
      submit: ([symbols]) => {
        const ms = symbols.reduce((sum, symbol) => sum + this.costs[symbol], 0) * this.slower();
        this.submissions.push(symbols);
        this.times.push(ms);
        this.now += ms + this.wait;
      },
    },
  };

  async compile(_code, phases) {
    const symbols = phases.map((phase) => phase.symbol);
    this.compiled.push(symbols);
    if (symbols.includes("draw")) await this.held;
    if (symbols.includes(this.refused)) throw new Error(`${this.refused} was refused`);
    return new Map(symbols.map((symbol) => [symbol, { symbol, getBindGroupLayout: () => ({}) }]));
  }

  buffer = () => ({ destroy: () => undefined });
  allocate = (size) => ({ buffer: {}, offset: 0, size });
  view = (of, offset, size) => ({ ...of, offset, size });
  write = () => undefined;
  checked = (_what, task) => task();
  emptyWait = async () => this.wait;
  done = async () => undefined;
  read = async (_staging, size) => {
    this.read_bytes.push(size);
    return size === 4 ? Int32Array.of(3).buffer : new Float32Array(size / 4).buffer;
  };
  close = () => undefined;
}

const kernel = (symbol, dims, work, groups, buffers = 1, writes = []) => ({
  name: symbol, dims, flops: work, bytes: "0",
  phases: [{ symbol, groups, buffers: Array.from({ length: buffers }, (_, i) => i), writes }],
});
const launch = (name, ...args) => ({ type: "launch", kernel: name, args, layer: 0 });
const number = (name, dtype = "i32", shape = ["1"]) => ({ name, dtype, shape, offset: 0 });
const dims = (bounds) => Object.entries(bounds).map(([name, hi]) => ({ name, lo: name === "e" || name === "d" ? 0 : 1, hi }));

/** Two layers of two launches, the first of which writes the cache; a head; a sampler. */
export const manifest = {
  model: { vocab_size: 50, context_window_size: 256, causal: true },
  kv_cache: { page_size: 4, page_bytes: 16 },
  part_bytes: 0,
  params: [],
  kernels: [
    kernel("embed", ["n"], "n * 10", "n"),
    kernel("append", ["n", "layer"], "n * 20", "n", 1, [0]),
    kernel("product", ["n"], "n * 1000 + context", "n"),
    kernel("head", ["r"], "r * 500", "r"),
    kernel("largest", ["r"], "r * 50", "r"),
    kernel("draw", ["r", "d"], "r * 50", "r * d"),
  ],
  entries: [
    {
      name: "prefill", dims: dims({ n: 64, b: 1, p: 64, r: 1, t: 64 }),
      inputs: [number("tokens", "i32", ["n"])], outputs: [number("logits", "f32", ["r", "50"])],
      arena: [number("x", "f32", ["n"])], arena_bytes: 256, tile: 4,
      steps: [
        launch("embed", "tokens"),
        { type: "repeat", var: "i", count: 2, first: 0, stride: 1, body: [launch("append", "kv_cache"), launch("product", "x")] },
        launch("head", "logits"),
      ],
    },
  ],
  sampler: {
    name: "choose", dims: dims({ r: 1, e: 50, v: 50, d: 1 }), inputs: [number("logits", "f32", ["r", "50"])],
    outputs: [number("sampled", "i32", ["r"])], arena: [], arena_bytes: 0,
    steps: [launch("largest", "sampled"), launch("draw", "sampled")],
  },
};
