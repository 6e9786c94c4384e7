// What the page says of sizes, times and mistakes. Touches no element.

/** 1234567 -> "1.2 MB" */
export function size(bytes) {
  const units = ["bytes", "kB", "MB", "GB"];
  let n = bytes;
  let unit = 0;
  while (n >= 999.5 && unit < units.length - 1) [n, unit] = [n / 1000, unit + 1];
  return `${unit === 0 || n >= 99.5 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

/** 95 -> "about 2 minutes" */
export function duration(seconds) {
  if (seconds < 1.5) return "about a second";
  if (seconds < 90) return `about ${Math.round(seconds)} seconds`;
  return `about ${Math.round(seconds / 60)} minutes`;
}

/** How a load goes on: "12 of 40 MB, 3.1 MB/s, about 9 seconds left". */
export class Pace {
  #marks = []; // [seconds, bytes over the network] of the last few seconds

  text({ bytes, totalBytes, fetchedBytes, timeElapsed, text }) {
    if (bytes >= totalBytes || fetchedBytes === 0) return text;
    this.#marks.push([timeElapsed, fetchedBytes]);
    while (this.#marks.length > 2 && timeElapsed - this.#marks[0][0] > 8) this.#marks.shift();
    const [since, had] = this.#marks[0];
    const rate = (fetchedBytes - had) / Math.max(timeElapsed - since, 0.001);
    const done = `${size(bytes)} of ${size(totalBytes)}`;
    if (timeElapsed - since < 0.5 || rate <= 0) return done;
    return `${done}, ${size(rate)}/s, ${duration((totalBytes - bytes) / rate)} left`;
  }
}

const WITHOUT_WEBGPU = [
  "Chrome or Edge 113 and newer have WebGPU on Windows, macOS, ChromeOS and Android.",
  "On Linux, open chrome://flags, enable “Unsafe WebGPU Support” and “Vulkan”, and start the browser anew.",
  "Safari 26 and newer have it on macOS, iOS and iPadOS; Firefox 141 and newer on Windows.",
  "A page has it only over https or from localhost, and not while hardware acceleration is switched off in the browser's settings.",
];

const HINTS = {
  NoWebGPU: ["This browser has no WebGPU", WITHOUT_WEBGPU],
  MissingFeature: ["This device cannot run the model", ["Choose another model, or a device with a newer graphics driver."]],
  LimitTooSmall: ["The model is too large for this device", ["Choose a smaller model, or close other tabs that use the GPU."]],
  QuotaExceeded: ["There is no room for the model", ["Delete a model that is kept in this browser, or free space on the disk."]],
  Offline: ["There is no network", ["What has been fetched is kept: load again when there is a network."]],
  FetchFailed: ["The model could not be fetched", ["What has been fetched is kept: loading again goes on from there."]],
  IntegrityError: ["A file of the model is damaged", ["Nothing of it was used. Try again; if it stays so, the server's copy is damaged."]],
  NewerFormat: ["The model was made for a newer Sterna", ["Reload the page to get the newer version, or compile the model with this one."]],
  DeviceLost: ["The graphics device was lost", ["Load the model again; it is kept in this browser."]],
};

/** A mistake as a title, what happened, and what to do. */
export function problem(error) {
  const [title, hints] = HINTS[error?.name] ?? ["That did not work", []];
  return { title, text: String(error?.message ?? error), hints };
}
