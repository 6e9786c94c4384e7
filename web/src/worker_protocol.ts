/**
 * What a page and a worker with an engine say to each other. Every request has a number, and each of
 * its answers bears it. Only data that can be cloned crosses; errors cross as records.
 *
 * A stream is pulled: the worker may be `AHEAD` pieces in front of the reader, and then waits.
 */

import type { ChatOptions, EngineConfig } from "./engine.js";
import type { ErrorRecord } from "./errors.js";
import type { InitProgressReport } from "./loader.js";
import type { ChatRequest, CompletionRequest, Usage } from "./protocol.js";

/** Pieces that are made before the reader asks for them: an interrupt stops within so many. */
export const AHEAD = 2;

/** Where messages go and come from: a worker, its inside, or a port. */
export interface Port {
  postMessage(message: unknown, transfer?: Transferable[]): void;
  addEventListener(kind: "message", listener: (event: MessageEvent) => void): void;
  removeEventListener(kind: "message", listener: (event: MessageEvent) => void): void;
}

export type Asked =
  | { kind: "reload"; id: number; model: string; chat: ChatOptions; config: CloneableConfig }
  | { kind: "unload"; id: number }
  | { kind: "reset"; id: number; keepStats: boolean }
  | { kind: "vendor"; id: number }
  | { kind: "binding"; id: number }
  | { kind: "interrupt" }
  | { kind: "chat"; id: number; request: ChatRequest }
  | { kind: "text"; id: number; request: CompletionRequest }
  | { kind: "pull"; id: number; count: number }
  | { kind: "close"; id: number };

export type Answered =
  | { kind: "value"; id: number; value: unknown; state: EngineState }
  | { kind: "opened"; id: number }
  | { kind: "chunk"; id: number; value: unknown }
  | { kind: "end"; id: number; state: EngineState }
  | { kind: "error"; id: number; error: ErrorRecord }
  | { kind: "progress"; id: number; report: InitProgressReport };

/** What the engine says of its last answer. */
export interface EngineState {
  readonly message: string;
  readonly usage: Usage | null;
}

/** Of an engine's configuration what can be cloned. */
export type CloneableConfig = Pick<EngineConfig, "appConfig" | "cache">;
