/** Turns: whoever enters waits until all who came before have left. */

export class Mutex {
  private last: Promise<void> = Promise.resolve();

  /** Wait for one's turn; what is returned ends it, and may be called again. */
  async enter(): Promise<() => void> {
    const before = this.last;
    let done: () => void = () => undefined;
    this.last = new Promise((resolve) => (done = resolve));
    await before;
    return done;
  }

  async run<T>(task: () => Promise<T>): Promise<T> {
    const done = await this.enter();
    try {
      return await task();
    } finally {
      done();
    }
  }
}
