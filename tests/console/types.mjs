// The types of the console's scripts, as far as they say them (JSDoc), by the TypeScript compiler. It writes nothing.

import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import ts from "typescript";

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const program = ts.createProgram([path("../../src/admin/console/js/main.js"), path("globals.d.ts")], {
  allowJs: true,
  checkJs: true,
  noEmit: true,
  skipLibCheck: true,
  types: [],
  target: ts.ScriptTarget.ES2024,
  lib: ["lib.es2024.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"],
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
});
// What others publish is taken as it is.
const found = ts.getPreEmitDiagnostics(program).filter(({ file }) => !file?.fileName.includes("/vendor/"));
assert.ok(program.getSourceFiles().filter(({ fileName }) => fileName.includes("/console/js/")).length > 15, "the scripts are no longer found");
const host = { getCanonicalFileName: (name) => name, getCurrentDirectory: () => path("../.."), getNewLine: () => "\n" };
assert.equal(ts.formatDiagnostics(found, host), "");
