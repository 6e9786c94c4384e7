/**
 * Rules of a grammar in the EBNF that the matcher reads (GBNF's dialect), and texts as its literals.
 *
 * Equal rules are kept once. Knows no JSON.
 */

/** A grammar that is being written: bodies in, names out. */
export class Rules {
  readonly #names = new Map<string, string>(); // by body
  readonly #bodies = new Map<string, string>(); // by name

  /** The name of a rule with this body. */
  add(body: string): string {
    const known = this.#names.get(body);
    if (known !== undefined) return known;
    const name = this.reserve();
    this.#names.set(body, name);
    this.#bodies.set(name, body);
    return name;
  }

  /** A name whose body comes later, for rules that call themselves. */
  reserve(): string {
    const name = `r${this.#bodies.size}`;
    this.#bodies.set(name, '""');
    return name;
  }

  define(name: string, body: string): void {
    this.#bodies.set(name, body);
  }

  /** The grammar's text; it begins with `root`. */
  text(root: string): string {
    const rules = [...this.#bodies].map(([name, body]) => `${name} ::= ${body}`);
    return [`root ::= ${root}`, ...rules].join("\n");
  }
}

/** A text as a literal; the empty one too. */
export function quoted(text: string): string {
  return `"${[...text].map((c) => character(c, '"\\')).join("")}"`;
}

/** One of several bodies. */
export function either(bodies: readonly string[]): string {
  const different = [...new Set(bodies)];
  return different.length === 1 ? different[0]! : `(${different.join(" | ")})`;
}

/** `body` between `least` and `most` times; null: without end. */
export function repeated(body: string, least: number, most: number | null): string {
  if (most === 0) return '""';
  if (most === null) return least === 0 ? `${body}*` : `${body}{${least},}`;
  return `${body}{${least},${most}}`;
}

export type Range = readonly [first: number, last: number];

const ALL: Range = [0, 0x10ffff];

/** `ranges` without `holes`. */
export function cut(ranges: readonly Range[], holes: readonly Range[]): Range[] {
  let left = [...ranges];
  for (const [from, to] of holes) {
    left = left.flatMap(([lo, hi]): Range[] => {
      if (to < lo || hi < from) return [[lo, hi]];
      const parts: Range[] = [[lo, from - 1], [to + 1, hi]];
      return parts.filter(([a, b]) => a <= b);
    });
  }
  return left;
}

/**
 * Characters from ranges of code points, as one class; `not`: all others. Written without `^`, which
 * the matcher takes for bytes where a character is not ASCII.
 */
export function charClass(ranges: readonly Range[], not = false): string {
  const parts = (not ? cut([ALL], ranges) : ranges).map(([lo, hi]) => {
    const first = character(String.fromCodePoint(lo), "]\\-^[");
    return lo === hi ? first : `${first}-${character(String.fromCodePoint(hi), "]\\-^[")}`;
  });
  return `[${parts.join("")}]`;
}

function character(c: string, special: string): string {
  const code = c.codePointAt(0)!;
  if (code >= 32 && code < 127) return special.includes(c) ? `\\${c}` : c;
  return code < 0x10000
    ? `\\u${code.toString(16).padStart(4, "0")}`
    : `\\U${code.toString(16).padStart(8, "0")}`;
}

/**
 * Any text in which `mark` does not occur, and where it does occur, what follows it by `rest`.
 * `mayEnd`: the text may end without the mark. A Knuth-Morris-Pratt automaton, one rule a state.
 */
export function until(rules: Rules, mark: string, rest: string, mayEnd: boolean): string {
  const units = [...mark];
  const alphabet = [...new Set(units)];
  const states = units.map(() => rules.reserve());
  const others = charClass(alphabet.map((c) => [c.codePointAt(0)!, c.codePointAt(0)!] as const), true);
  states.forEach((state, i) => {
    const steps = alphabet.map((c) => {
      const next = longestBorder(units.slice(0, i).concat(c), units);
      return `${quoted(c)} ${next === units.length ? rest : states[next]!}`;
    });
    rules.define(state, [...(mayEnd ? ['""'] : []), ...steps, `${others} ${states[0]!}`].join(" | "));
  });
  return states[0]!;
}

/** How much of `units` the end of `text` is the beginning of. */
function longestBorder(text: readonly string[], units: readonly string[]): number {
  for (let n = Math.min(text.length, units.length); n > 0; n--) {
    if (text.slice(-n).every((c, i) => c === units[i])) return n;
  }
  return 0;
}

/** Any text that does not begin with `opening`; where it does, what follows that by `rest`. */
export function unlessFirst(rules: Rules, opening: string, rest: string): string {
  const any = "[\\u0000-\\U0010ffff]*";
  let body = rest;
  for (const c of [...opening].reverse()) {
    const code = c.codePointAt(0)!;
    const other = `${charClass([[code, code]], true)} ${any}`;
    body = rules.add(`"" | ${quoted(c)} ${body} | ${other}`);
  }
  return body;
}
