/**
 * The decimal integers between two bounds as a grammar's body. Bounds may be infinite.
 *
 * A range is cut where its numbers' length changes, and each part at its first differing digit.
 */

const FREE_DIGITS = 15; // of an integer without a bound: more than any reader keeps

/** `lo` <= n <= `hi`, each a whole number or infinite; no number has a sign and a 0, or leading 0s. */
export function integers(lo: number, hi: number): string {
  const bodies: string[] = [];
  if (lo < 0) bodies.push(...naturals(Math.max(1, -hi), -lo).map((body) => `"-" ${body}`));
  if (hi >= 0) bodies.push(...naturals(Math.max(0, lo), hi));
  return bodies.join(" | ");
}

function naturals(lo: number, hi: number): string[] {
  const bodies: string[] = [];
  if (hi === Infinity) {
    const digits = String(lo).length;
    bodies.push(`[1-9] [0-9]{${digits},${Math.max(digits, FREE_DIGITS)}}`); // longer than `lo`
    hi = 10 ** digits - 1;
  }
  for (let low = lo; low <= hi; ) {
    const high = Math.min(hi, 10 ** String(low).length - 1);
    bodies.push(alike(String(low), String(high)));
    low = high + 1;
  }
  return bodies;
}

/** Numbers of the same length. */
function alike(lo: string, hi: string): string {
  if (lo === "") return '""';
  const [first, last] = [lo[0]!, hi[0]!];
  const [low, high] = [lo.slice(1), hi.slice(1)];
  const nines = "9".repeat(low.length);
  const zeros = "0".repeat(low.length);
  if (low === zeros && high === nines) return digits(first, last, low.length);
  if (first === last) return `"${first}" ${alike(low, high)}`;
  const bodies = [`"${first}" ${alike(low, nines)}`, `"${last}" ${alike(zeros, high)}`];
  const [after, before] = [Number(first) + 1, Number(last) - 1];
  if (after <= before) bodies.push(digits(String(after), String(before), low.length));
  return `(${bodies.join(" | ")})`;
}

function digits(first: string, last: string, free: number): string {
  const head = first === last ? `"${first}"` : `[${first}-${last}]`;
  return free === 0 ? head : `${head} [0-9]{${free},${free}}`;
}
