/** The package's face: what a page imports. */

export * from "./errors.js";
export type * from "./interfaces.js";
export type * from "./protocol.js";
