// Bundles the page: `node build.mjs FOLDER`. What it writes is all that the agent embeds; nothing is fetched here.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2] ?? join(here, "dist");
mkdirSync(out, { recursive: true });

const { metafile, outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: { app: "src/main.tsx" },
  outdir: out,
  bundle: true,
  minify: true,
  write: false,
  metafile: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  logLevel: "warning",
});

const files = new Map(outputFiles.map((file) => [file.path.slice(out.length + 1), Buffer.from(file.contents)]));
files.set("index.html", readFileSync(join(here, "src/index.html")));
files.set("licenses.txt", Buffer.from(licenses(Object.keys(metafile.inputs))));

const hash = createHash("sha256");
for (const [name, bytes] of [...files].sort()) {
  writeFileSync(join(out, name), bytes);
  hash.update(name).update(bytes);
}
// What tells one build of the page from another: its ETag.
writeFileSync(join(out, "version"), hash.digest("hex").slice(0, 16));

/** The licences of the packages that are in the bundle. */
function licenses(inputs) {
  const packages = inputs.map((input) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(input)?.[1]);
  const all = [...new Set(packages.filter(Boolean))].sort();
  return all.map((name) => {
    const folder = join(here, "node_modules", name);
    const { version, license } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((file) => /^licen[cs]e/i.test(file));
    if (!file) throw new Error(`${name} comes without a licence file`);
    return `${name} ${version} (${license})\n\n${readFileSync(join(folder, file), "utf8").trim()}\n`;
  }).join("\n----\n\n");
}
