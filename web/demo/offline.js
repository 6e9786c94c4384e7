// The page's service worker: keeps the page's own files, so that it starts without a network.
//
// The server tells which files the page has, with their hashes, in page.json. All of them are kept
// together as one version, whole or not at all. Whoever opens the page gets the server's version,
// once it is kept, and without a network the one that is; while a page is open its version stays.
// Models and their indexes are no concern of this worker: the package keeps them.

const VERSION = "sterna-page."; // caches, one a version
const LISTS = "sterna-lists"; // a cache of what the server last said it has
const MARK = "page.json"; // written last: a version that has it is whole
const PATIENCE = 3000; // ms for a server, where there is something kept
const HOME = new URL("./", location.href).pathname;

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(Promise.all([renew(), listed(new Request("models.json"))]));
});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const { origin, pathname } = new URL(event.request.url);
  if (event.request.method !== "GET" || origin !== location.origin) return;
  if (pathname.startsWith(`${HOME}models/`)) return;
  if (event.request.mode === "navigate") event.respondWith(opened(event));
  else if (pathname === `${HOME}models.json`) event.respondWith(listed(event.request));
  else event.respondWith(kept(event.request));
});

async function opened(event) {
  const news = renew().catch(() => "unknown");
  event.waitUntil(news);
  const found = await Promise.race([news, pause()]);
  if (found === "gone") await forget();
  if (found === "gone" || found === "refused") return fetch(event.request);
  await settle();
  return kept(event.request);
}

async function kept(request) {
  const [oldest] = await whole();
  const found = await oldest?.cache.match(request, { ignoreSearch: true });
  return found ?? fetch(request);
}

/** The list of models: the server's, or what it last said. */
async function listed(request) {
  const lists = await caches.open(LISTS);
  const before = await lists.match(request);
  try {
    const answer = await fetch(request, before ? { signal: AbortSignal.timeout(PATIENCE) } : {});
    if (answer.ok) await lists.put(request, answer.clone());
    return answer;
  } catch (error) {
    if (before === undefined) throw error;
    return before;
  }
}

/** Keep the server's version. "gone": another server is here now; "refused": it wants a key. */
async function renew() {
  const answer = await fetch(MARK, { cache: "no-store" });
  if (answer.status === 401 || answer.status === 403) return "refused";
  if (answer.status >= 500) return "unknown";
  const list = await answer.clone().json().catch(() => null);
  if (!answer.ok || !Array.isArray(list?.files)) return "gone";
  const name = VERSION + list.version;
  const cache = await caches.open(name);
  if (await cache.match(MARK)) return "kept";
  try {
    await Promise.all(list.files.map((file) => keep(cache, file)));
    await cache.put(MARK, answer);
  } catch (error) {
    await caches.delete(name);
    throw error;
  }
  return "kept";
}

async function keep(cache, { path, sha256 }) {
  const answer = await fetch(path, { cache: "no-cache" });
  const digest = await crypto.subtle.digest("SHA-256", await answer.clone().arrayBuffer());
  const hash = Array.from(new Uint8Array(digest), (b) => b.toString(16).padStart(2, "0")).join("");
  if (!answer.ok || hash !== sha256) throw new Error(`${path} is not the file that ${MARK} lists`);
  await cache.put(path, answer);
}

/** Versions that are whole, the oldest first. */
async function whole() {
  const names = (await caches.keys()).filter((name) => name.startsWith(VERSION));
  const all = await Promise.all(names.map(async (name) => ({ name, cache: await caches.open(name) })));
  const marked = await Promise.all(all.map(({ cache }) => cache.match(MARK)));
  return all.filter((_, i) => marked[i] !== undefined);
}

/** The newest version is the only one from here on. */
async function settle() {
  const versions = await whole();
  await Promise.all(versions.slice(0, -1).map(({ name }) => caches.delete(name)));
}

async function forget() {
  const names = (await caches.keys()).filter((name) => name.startsWith(VERSION) || name === LISTS);
  await Promise.all(names.map((name) => caches.delete(name)));
  await registration.unregister();
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve, PATIENCE, "unknown"));
}
