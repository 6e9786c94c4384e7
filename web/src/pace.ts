/**
 * How long launches take on this device, learnt from submissions, and so where a step is cut.
 *
 * In: for each launch its kernel and its work, as the manifest counts it; of each submission, how
 * long it took. Out: where a submission has to end so that none holds the GPU for long: other pages
 * and the screen get it between two of them. Most steps of most devices stay whole. Knows no device.
 */

export const AIM = 40; // ms of a submission: times scatter, and 50 is what nobody sees
const LEAST = 0.01; // ms that a submission takes, whatever the clock can tell

/** A launch as it costs. `work`: floating-point operations and bytes, added up. */
export interface Costly {
  readonly kernel: string;
  readonly work: number;
}

export class Pace {
  private readonly costs = new Map<string, number>(); // ms for a unit of work, by kernel
  private ms = 0; // of all submissions
  private work = 0;

  /** `wait`: ms that a submission of nothing takes to be told. */
  constructor(private readonly wait: number) {}

  /**
   * Where the submission ends that begins with the launch `from`: what is left, in pieces as long
   * as each other. The very first has one launch.
   */
  cut(launches: readonly Costly[], from: number): number {
    // Where a wait takes as long as a submission may, it tells little and costs more than it gives.
    if (this.wait > AIM) return launches.length;
    if (this.work === 0) return from + 1;
    const left = launches.slice(from).map((launch) => this.expected(launch));
    const all = left.reduce((a, b) => a + b, 0);
    const piece = all / Math.max(1, Math.ceil(all / AIM));
    let ms = left[0] ?? 0;
    let to = from + 1;
    for (; to < launches.length; to++) {
      const next = left[to - from] as number;
      if (ms + next > AIM || ms + next / 2 > piece) break;
      ms += next;
    }
    return to;
  }

  /** These launches, submitted together, took `ms`. One time that is odd changes little. */
  took(launches: readonly Costly[], ms: number): void {
    const net = Math.max(ms - this.wait, LEAST);
    const work = launches.reduce((sum, launch) => sum + launch.work, 0);
    if (work === 0) return;
    const common = this.work > 0 ? this.ms / this.work : net / work;
    const expected = launches.reduce((sum, launch) => sum + this.expected(launch, common), 0);
    const ratio = net / Math.max(expected, LEAST);
    for (const kernel of new Set(launches.map((launch) => launch.kernel))) {
      const known = this.costs.get(kernel);
      this.costs.set(kernel, known === undefined ? common * ratio : known * Math.sqrt(ratio));
    }
    this.ms += net;
    this.work += work;
  }

  /** ms of one launch; a kernel that was never measured is as fast as the others. */
  expected({ kernel, work }: Costly, common = this.ms / Math.max(this.work, 1)): number {
    return (this.costs.get(kernel) ?? common) * work;
  }
}
