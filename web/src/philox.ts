/**
 * Counter-based random numbers: Philox4x32-10, as runtime/philox.py.
 *
 * (seed, stream, position) in, 64 random bits out. No state, so a draw does not depend on which
 * others were made. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 */

const [M0, M1] = [0xd2511f53n, 0xcd9e8d57n];
const [W0, W1] = [0x9e3779b9, 0xbb67ae85];
const WORD = 0xffffffffn;

export type Words = readonly [number, number, number, number];

/** Ten rounds over four 32-bit words. */
export function philox(counter: Words, key: readonly [number, number]): Words {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const [p0, p1] = [M0 * BigInt(c0), M1 * BigInt(c2)];
    [c0, c1, c2, c3] = [
      (high(p1) ^ c1 ^ k0) >>> 0, low(p1), (high(p0) ^ c3 ^ k1) >>> 0, low(p0),
    ];
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The draw for the token at `position` of answer `stream`: 64 bits. */
export function drawBits(seed: bigint, stream: number, position: number): bigint {
  const place = BigInt(position);
  const counter: Words = [low(place), high(place), stream >>> 0, 0];
  const [first, second] = philox(counter, [low(seed), high(seed)]);
  return (BigInt(first) << 32n) | BigInt(second);
}

function low(x: bigint): number {
  return Number(x & WORD);
}

function high(x: bigint): number {
  return Number((x >> 32n) & WORD);
}
