/**
 * How long launches take on this device, learnt from submissions, and so where a step is cut.
 *
 * In: for each launch its kernel and its work, as the manifest counts it; of each submission, how
 * long it took. Out: where a submission has to end so that none holds the GPU for long: other pages
 * and the screen get it between two of them. Most steps of most devices stay whole. Knows no device.
 */

export const BOUND = 50; // ms that a submission may take: nobody sees so much
const LATE = 25; // ms of a wait that tells little, and costs more than it gives
const LEAST = 0.01; // ms that a submission takes, whatever the clock can tell

// How many times as long as expected submissions take: where nothing disturbs, before any is
// known, and at most, for what comes once. It is forgotten slowly: disturbances last.
const CALM = 1.5;
const UNKNOWN = 2;
const MOST = 3;
const KEPT = 0.985; // of it, from one submission to the next

/** A launch as it costs. `work`: floating-point operations and bytes, added up. */
export interface Costly {
  readonly kernel: string;
  readonly work: number;
}

/** ms for a unit of work, and in how many submissions that was measured. */
interface Cost {
  readonly ms: number;
  readonly times: number;
}

export class Pace {
  private readonly costs = new Map<string, Cost>(); // by kernel
  private ms = 0; // of all submissions
  private work = 0;
  private scatter = UNKNOWN;

  /** `wait`: ms that a submission of nothing takes to be told. */
  constructor(private readonly wait: number) {}

  /** ms of launches that are submitted together: so few that they end in time even when disturbed. */
  get aim(): number {
    return (BOUND - Math.min(this.wait, LATE)) / this.scatter;
  }

  /**
   * Where the submission ends that begins with the launch `from`: what is left, in pieces as long
   * as each other. A kernel's first launch is alone: what it takes is not known, and may be the driver's.
   */
  cut(launches: readonly Costly[], from: number): number {
    if (this.wait > LATE) return launches.length;
    const left = launches.slice(from);
    const all = this.total(left);
    const piece = all / Math.max(1, Math.ceil(all / this.aim));
    const [first, ...others] = left as [Costly, ...Costly[]];
    let ms = this.expected(first);
    let count = 1;
    for (const launch of this.known(first) ? others : []) {
      const next = this.expected(launch);
      if (ms + next > this.aim || ms + next / 2 > piece || !this.known(launch)) break;
      ms += next;
      count++;
    }
    return from + count;
  }

  /** These launches, submitted together, took `ms`. One time that is odd changes little. */
  took(launches: readonly Costly[], ms: number): void {
    const net = Math.max(ms - this.wait, LEAST);
    const work = launches.reduce((sum, launch) => sum + launch.work, 0);
    if (work === 0) return;
    if (this.work === 0) [this.ms, this.work] = [net, work];
    const ratio = net / Math.max(this.total(launches), LEAST);
    // Short ones scatter most, and harm nobody.
    const seen = this.sure(launches) && net > this.aim / 2 ? Math.min(ratio, MOST) : 0;
    this.scatter = Math.max(CALM, 1 + (this.scatter - 1) * KEPT, seen);
    const common = this.ms / this.work;
    for (const kernel of new Set(launches.map((launch) => launch.kernel))) {
      const { ms, times } = this.costs.get(kernel) ?? { ms: common, times: 0 };
      // The first time is the driver's too, which may only then make ready what it was given.
      this.costs.set(kernel, { ms: ms * (times < 2 ? ratio : Math.sqrt(ratio)), times: times + 1 });
    }
    this.ms += net;
    this.work += work;
  }

  /** ms of one launch; a kernel that was never measured is as fast as the others. */
  expected({ kernel, work }: Costly): number {
    return (this.costs.get(kernel)?.ms ?? this.ms / Math.max(this.work, 1)) * work;
  }

  /** ms of launches one after the other. */
  total(launches: readonly Costly[]): number {
    return launches.reduce((sum, launch) => sum + this.expected(launch), 0);
  }

  /** Whether launches are known to take longer together than a submission may. */
  tooLong(launches: readonly Costly[]): boolean {
    return this.sure(launches) && this.total(launches) > this.aim;
  }

  private sure(launches: readonly Costly[]): boolean {
    return launches.every(({ kernel }) => (this.costs.get(kernel)?.times ?? 0) > 1);
  }

  private known({ kernel }: Costly): boolean {
    return this.costs.has(kernel);
  }
}
