/** JSON as Python writes it, whose separators models have seen in training. */

export function pythonJson(value: unknown, item = ", ", key = ": "): string {
  if (Array.isArray(value)) return `[${value.map((x) => pythonJson(x, item, key)).join(item)}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value) ?? "null";
  const pairs = Object.entries(value).filter(([, x]) => x !== undefined);
  return `{${pairs.map(([k, x]) => JSON.stringify(k) + key + pythonJson(x, item, key)).join(item)}}`;
}
