/**
 * The page allocator: which of the cache's pages are free, and how many owners the others have.
 *
 * As engine/pages.py: it knows no tokens and no device, free pages are handed out in a fixed order,
 * and a page that is kept outlives its owners, idle, until it is dropped.
 */

export class Pages {
  private readonly owners: number[];
  private readonly kept: boolean[];
  private readonly free_: number[];
  private idle_ = 0;

  constructor(readonly count: number) {
    this.owners = new Array<number>(count).fill(0);
    this.kept = new Array<boolean>(count).fill(false);
    this.free_ = Array.from({ length: count }, (_, i) => count - 1 - i); // page 0 is first
  }

  /** Free pages. */
  get available(): number {
    return this.free_.length;
  }

  /** Pages that nobody owns and that are kept. */
  get idle(): number {
    return this.idle_;
  }

  /** Take `count` free pages. The caller has looked at `available`. */
  allocate(count: number): number[] {
    check(count <= this.available, `${count} pages wanted, ${this.available} free`);
    const taken = this.free_.splice(this.free_.length - count, count).reverse();
    for (const page of taken) this.owners[page] = 1;
    return taken;
  }

  /** Become another owner of pages in use or kept. */
  fork(pages: readonly number[]): number[] {
    for (const page of pages) {
      if (this.owned(page) === 0) {
        check(this.kept[page] === true, `page ${page} is free, it cannot be shared`);
        this.idle_--;
      }
      this.owners[page] = this.owned(page) + 1;
    }
    return [...pages];
  }

  /** Give up one ownership of each page; the last owner returns it, unless it is kept. */
  free(pages: readonly number[]): void {
    for (const page of pages) {
      check(this.owned(page) > 0, `page ${page} is already free`);
      this.owners[page] = this.owned(page) - 1;
      if (this.owned(page) === 0) this.leave(page);
    }
  }

  /** A page in use shall outlive its owners. */
  keep(page: number): void {
    check(this.owned(page) > 0, `page ${page} is free, it cannot be kept`);
    check(this.kept[page] === false, `page ${page} is kept twice`);
    this.kept[page] = true;
  }

  drop(page: number): void {
    check(this.kept[page] === true, `page ${page} is not kept`);
    this.kept[page] = false;
    if (this.owned(page) > 0) return;
    this.idle_--;
    this.free_.push(page);
  }

  private owned(page: number): number {
    return this.owners[page] ?? 0;
  }

  private leave(page: number): void {
    if (this.kept[page] === true) this.idle_++;
    else this.free_.push(page);
  }
}

function check(holds: boolean, why: string): void {
  if (!holds) throw new Error(why);
}
