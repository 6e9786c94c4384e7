/**
 * The errors that callers can act on, one class a cause; `catch (e) { if (e instanceof SternaError)`
 * is the useful catch.
 *
 *     SternaError
 *     ├─ DeviceError
 *     │    ├─ NoWebGPU              the browser or machine has no adapter
 *     │    ├─ MissingFeature        the adapter lacks what every program of the model needs
 *     │    ├─ LimitTooSmall         a limit of the adapter is below what the model needs
 *     │    ├─ OutOfMemory           the device has no room for what the model takes
 *     │    └─ DeviceLost            the device went away, and could not be had again
 *     ├─ StorageError
 *     │    └─ QuotaExceeded         the browser gives no more room for the model's files
 *     ├─ FetchFailed                the server does not give a file
 *     │    └─ Offline               there is no network
 *     ├─ ArtifactError              what was fetched is no model that this version can read
 *     │    ├─ NewerFormat           it was written by a newer Sterna
 *     │    └─ IntegrityError        a file is not the one that its index names
 *     ├─ ModelNotLoaded             a request before `reload`, or after `unload`
 *     ├─ Interrupted                a load that `unload` or another `reload` ended
 *     └─ RequestError               a field that cannot be served; `param` names it
 *          └─ ContextWindowExceeded the prompt is longer than the model's window
 *
 * A message says what was asked, what was found and what to do, in one sentence or two. `name` is
 * the class's, also where code was made shorter, so an error can cross from a worker.
 */

export class SternaError extends Error {
  override name = "SternaError";
}

export class DeviceError extends SternaError {
  override name = "DeviceError";
}

export class NoWebGPU extends DeviceError {
  override name = "NoWebGPU";
}

export class MissingFeature extends DeviceError {
  override name = "MissingFeature";
}

export class LimitTooSmall extends DeviceError {
  override name = "LimitTooSmall";
}

export class OutOfMemory extends DeviceError {
  override name = "OutOfMemory";
}

export class DeviceLost extends DeviceError {
  override name = "DeviceLost";
}

export class StorageError extends SternaError {
  override name = "StorageError";
}

export class QuotaExceeded extends StorageError {
  override name = "QuotaExceeded";
}

export class FetchFailed extends SternaError {
  override name = "FetchFailed";
}

export class Offline extends FetchFailed {
  override name = "Offline";
}

export class ArtifactError extends SternaError {
  override name = "ArtifactError";
}

export class NewerFormat extends ArtifactError {
  override name = "NewerFormat";
}

export class IntegrityError extends ArtifactError {
  override name = "IntegrityError";
}

export class ModelNotLoaded extends SternaError {
  override name = "ModelNotLoaded";
}

export class Interrupted extends SternaError {
  override name = "Interrupted";
}

export class RequestError extends SternaError {
  override name = "RequestError";

  /** `param`: the field at fault, if it is one. */
  constructor(
    message: string,
    readonly param: string | null = null,
  ) {
    super(message);
  }
}

export class ContextWindowExceeded extends RequestError {
  override name = "ContextWindowExceeded";
}

const CLASSES = [
  SternaError, DeviceError, NoWebGPU, MissingFeature, LimitTooSmall, OutOfMemory, DeviceLost,
  StorageError, QuotaExceeded, FetchFailed, Offline, ArtifactError, NewerFormat, IntegrityError, ModelNotLoaded,
  Interrupted,
] as const;

/** An error as it crosses from a worker. */
export interface ErrorRecord {
  name: string;
  message: string;
  param?: string | null;
}

export function toRecord(error: unknown): ErrorRecord {
  if (error instanceof RequestError) {
    return { name: error.name, message: error.message, param: error.param };
  }
  if (error instanceof Error) return { name: error.name, message: error.message };
  return { name: "Error", message: String(error) };
}

/** The error that a record was made of, of the same class where it is one of ours. */
export function fromRecord(record: ErrorRecord): Error {
  const { name, message, param = null } = record;
  if (name === "RequestError") return new RequestError(message, param);
  if (name === "ContextWindowExceeded") return new ContextWindowExceeded(message, param);
  const found = CLASSES.find((kind) => new kind("").name === name);
  const error = found === undefined ? new Error(message) : new found(message);
  if (found === undefined) error.name = name;
  return error;
}
