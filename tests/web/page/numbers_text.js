/**
 * A text side whose texts are numbers: "5 12 7" is the tokens 5, 12, 7. For tests of the engine
 * alone; a chat is its last message.
 */

const spell = (ids) => ids.map((id) => `${id} `).join("");
const read = (text) => text.split(" ").filter((part) => part !== "").map(Number);

export const loadNumbers = (vocabSize, eosIds = []) => async () => {
  const tokenizer = {
    vocabSize,
    specialTokens: new Map(),
    bosId: null,
    eosIds,
    encode: read,
    decode: spell,
    idToToken: String,
    idToPiece: (id) => new TextEncoder().encode(`${id} `),
  };
  return {
    tokenizer,
    template: { render: ({ messages }) => read(messages.at(-1).content) },
    detokenizer: () => ({ put: spell, finish: () => "" }),
    stopStrings: (stops) => new Stops(stops),
    constraint: async () => null,
    answer: () => ({ put: (content) => ({ content }), finish: () => ({}) }),
  };
};

/** Stop strings that are whole tokens. */
class Stops {
  stopped = false;
  constructor(stops) {
    this.stops = stops;
  }
  put(text) {
    this.stopped = this.stops.includes(text.trim());
    return this.stopped ? "" : text;
  }
  finish() {
    return "";
  }
}
