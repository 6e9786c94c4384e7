// Copies the libraries that the package uses beside its modules, as modules of their own, so that a
// plain page, a worker and node import them by a relative path: no bundler and no import map, which
// workers do not have. Each keeps its licence beside it.

import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";

const FROM = new URL("node_modules/", import.meta.url);
const TO = new URL("dist/vendor/", import.meta.url);
const TYPES = new URL("src/vendor/", import.meta.url);

/** Old-style modules write to `exports`; in node they look for a location as browsers have. */
const wrapped = (source, names) => `const exports = {}, module = { exports };
const location = globalThis.location ?? { href: import.meta.url };
${source.replace(/^\/\/# sourceMappingURL=.*$/m, "")}
export const { ${names.join(", ")} } = module.exports;
`;

const plain = (source) => source.replace(/^\/\/# sourceMappingURL=.*$/m, "");

const LIBRARIES = [
  { name: "tokenizers", package: "@huggingface/tokenizers", file: "dist/tokenizers.min.mjs", make: plain },
  { name: "jinja", package: "@huggingface/jinja", file: "dist/index.js", make: plain },
  {
    name: "xgrammar",
    package: "@mlc-ai/web-xgrammar",
    file: "lib/index.js",
    make: (source) =>
      wrapped(source, ["CompiledGrammar", "Grammar", "GrammarCompiler", "GrammarMatcher", "TokenizerInfo"]),
  },
];

await mkdir(TO, { recursive: true });
for (const library of LIBRARIES) {
  const folder = new URL(`${library.package}/`, FROM);
  const source = await readFile(new URL(library.file, folder), "utf8");
  const { version, license } = JSON.parse(await readFile(new URL("package.json", folder), "utf8"));
  const head = `/*! ${library.package} ${version}, ${license}; see ${library.name}.LICENSE */\n`;
  await writeFile(new URL(`${library.name}.js`, TO), head + library.make(source));
  await copyFile(new URL(`${library.name}.d.ts`, TYPES), new URL(`${library.name}.d.ts`, TO));
  await copyFile(new URL("LICENSE", folder), new URL(`${library.name}.LICENSE`, TO)).catch(() =>
    writeFile(new URL(`${library.name}.LICENSE`, TO), `${license}: ${library.package} ships no text of it.\n`),
  );
}
