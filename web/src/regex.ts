/**
 * Regular expressions as grammar: the part of the syntax that every dialect shares.
 *
 * In: a pattern. Out: a body of EBNF; RequestError for what a grammar cannot say, such as
 * lookaround. A text that matches is the whole of what `^` and `$` stand around; where they are
 * missing anything may stand there. `json`: the text stands in a JSON string, with its escapes.
 */

import { charClass, cut, either, quoted, repeated, type Range } from "./ebnf.js";
import { RequestError } from "./errors.js";

const MAX_CODE = 0x10ffff;
const MOST = 1000; // of a counted repetition
const DIGIT: Range[] = [[48, 57]];
const WORD: Range[] = [...DIGIT, [65, 90], [95, 95], [97, 122]];
const SPACE: Range[] = [[9, 13], [32, 32]];
const CLASSES: Readonly<Record<string, Range[]>> = {
  d: DIGIT,
  w: WORD,
  s: SPACE,
  D: complement(DIGIT),
  W: complement(WORD),
  S: complement(SPACE),
};
const CONTROL: Readonly<Record<string, number>> = { n: 10, r: 13, t: 9, f: 12, v: 11, 0: 0 };
const NEWLINES: Range[] = [[10, 10], [13, 13]];
// Characters that JSON writes with an escape; other control characters are left out of classes.
const ESCAPES: readonly [number, string][] = [
  ...[[34, '\\"'], [92, "\\\\"], [10, "\\n"], [13, "\\r"], [9, "\\t"], [12, "\\f"], [8, "\\b"]],
] as [number, string][];

/** The body of a grammar for `pattern`; `where` is the field it came in. */
export function regexBody(pattern: string, where: string, json: boolean): string {
  return new Reader(pattern, where, json).whole();
}

class Reader {
  #at = 0;

  constructor(
    private readonly pattern: string,
    private readonly where: string,
    private readonly json: boolean,
  ) {}

  whole(): string {
    const any = `${this.#set([[0, MAX_CODE]])}*`;
    const branches = this.#alternatives(true).map(({ body, begins, ends }) =>
      [begins ? "" : any, body, ends ? "" : any].filter(Boolean).join(" ") || '""',
    );
    if (this.#at < this.pattern.length) this.#fail("an unopened group");
    return either(branches);
  }

  /** What `|` divides; `top`: anchors may stand around each. */
  #alternatives(top: boolean): { body: string; begins: boolean; ends: boolean }[] {
    const found = [this.#sequence(top)];
    while (this.#take("|")) found.push(this.#sequence(top));
    return found;
  }

  #sequence(top: boolean): { body: string; begins: boolean; ends: boolean } {
    const begins = this.#take("^");
    const items: string[] = [];
    let ends = false;
    while (this.#at < this.pattern.length && !"|)".includes(this.pattern[this.#at]!)) {
      if (this.#take("$")) {
        ends = true;
        break;
      }
      items.push(this.#quantified(this.#atom()));
    }
    const after = this.pattern[this.#at];
    if ((begins || ends) && !top) this.#fail("an anchor inside a group");
    if (ends && after !== undefined && after !== "|") this.#fail("something after $");
    return { body: items.join(" "), begins, ends };
  }

  #atom(): string {
    const c = this.#next();
    if (c === "(") return this.#group();
    if (c === "[") return this.#set(this.#class());
    if (c === ".") return this.#set(complement(NEWLINES));
    if (c === "\\") return this.#set(this.#escape());
    if ("*+?{^".includes(c)) this.#fail(`a "${c}" that repeats nothing`);
    const code = c.codePointAt(0)!;
    return this.#set([[code, code]]);
  }

  #group(): string {
    if (this.#take("?") && !this.#take(":")) this.#fail("a group other than (?:...)");
    const branches = this.#alternatives(false).map(({ body }) => body || '""');
    if (!this.#take(")")) this.#fail("a group without its end");
    return `(${branches.join(" | ")})`;
  }

  #quantified(body: string): string {
    const c = this.pattern[this.#at];
    const counted = /^\{(\d+)(,?)(\d*)\}/.exec(this.pattern.slice(this.#at));
    if (counted !== null) {
      this.#at += counted[0].length;
      const least = Number(counted[1]);
      const most = counted[2] === "" ? least : counted[3] === "" ? null : Number(counted[3]);
      if (least > MOST || (most ?? 0) > MOST || (most ?? least) < least) {
        this.#fail(`a repetition ${counted[0]}, possible are up to ${MOST}`);
      }
      body = repeated(body, least, most);
    } else if (c !== undefined && "*+?".includes(c)) {
      this.#at++;
      body += c;
    } else return body;
    this.#take("?"); // lazy: the same texts match
    if (this.#take("+")) this.#fail("a possessive repetition");
    return body;
  }

  #class(): Range[] {
    const not = this.#take("^");
    const ranges: Range[] = [];
    while (!(this.pattern[this.#at] === "]" && ranges.length > 0)) {
      const first = this.#member();
      if (first.length === 1 && this.pattern[this.#at] === "-" && this.pattern[this.#at + 1] !== "]") {
        this.#at++;
        const last = this.#member();
        const [lo, hi] = [first[0]![0], last[0]?.[1] ?? -1];
        if (last.length !== 1 || hi < lo) this.#fail("a range that is none");
        ranges.push([lo, hi]);
      } else ranges.push(...first);
    }
    this.#at++;
    return not ? complement(ranges) : ranges;
  }

  #member(): Range[] {
    const c = this.#next();
    if (c === "\\") return this.#escape();
    const code = c.codePointAt(0)!;
    return [[code, code]];
  }

  #escape(): Range[] {
    const c = this.#next();
    const found = CLASSES[c];
    if (found !== undefined) return found;
    if (c === "x" || c === "u") {
      const digits = this.pattern.slice(this.#at, this.#at + (c === "x" ? 2 : 4));
      if (!/^[0-9a-fA-F]+$/.test(digits)) this.#fail(`a \\${c} without its digits`);
      this.#at += digits.length;
      const code = Number.parseInt(digits, 16);
      return [[code, code]];
    }
    const code = CONTROL[c] ?? c.codePointAt(0)!;
    if (CONTROL[c] === undefined && /[a-zA-Z0-9]/.test(c)) this.#fail(`the escape \\${c}`);
    return [[code, code]];
  }

  /** Characters, each as it is written in the answer. */
  #set(ranges: readonly Range[]): string {
    if (ranges.length === 0) this.#fail("a class of no characters");
    if (!this.json) return ranges.length === 1 && ranges[0]![0] === ranges[0]![1]
      ? quoted(String.fromCodePoint(ranges[0]![0]))
      : charClass(ranges);
    const escaped = ESCAPES.filter(([code]) => ranges.some(([lo, hi]) => lo <= code && code <= hi));
    const plain = cut(ranges, [[0, 31], [34, 34], [92, 92], [0xd800, 0xdfff]]);
    const bodies = escaped.map(([, text]) => quoted(text));
    if (plain.length > 0) bodies.unshift(charClass(plain));
    if (bodies.length === 0) this.#fail("only control characters");
    return either(bodies);
  }

  #next(): string {
    const code = this.pattern.codePointAt(this.#at);
    if (code === undefined) return this.#fail("an end too early");
    const c = String.fromCodePoint(code);
    this.#at += c.length;
    return c;
  }

  #take(c: string): boolean {
    const found = this.pattern[this.#at] === c;
    if (found) this.#at++;
    return found;
  }

  #fail(what: string): never {
    throw new RequestError(
      `${this.where} has the pattern ${JSON.stringify(this.pattern).slice(0, 80)} with ${what}, ` +
        "which cannot be enforced",
      this.where,
    );
  }
}

function complement(ranges: readonly Range[]): Range[] {
  return cut([[0, MAX_CODE]], ranges);
}
