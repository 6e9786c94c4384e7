/** The library as `vendor.mjs` copies it beside the compiled modules; it has a wasm file in it. */
export { CompiledGrammar, Grammar, GrammarCompiler, GrammarMatcher, TokenizerInfo } from "@mlc-ai/web-xgrammar";
