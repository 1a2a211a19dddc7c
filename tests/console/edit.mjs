// Serves the console's files from the folder, and everything else from a daemon: edit a file and reload, without a build.
//
//     node tests/console/edit.mjs http://127.0.0.1:9478

import { readFile } from "node:fs/promises";
import http from "node:http";
import { extname } from "node:path";

const daemon = new URL(process.argv[2] ?? "http://127.0.0.1:9478");
const FOLDER = new URL("../../src/admin/console/", import.meta.url);
const KINDS = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml" };

const server = http.createServer((request, answer) => {
  const options = { hostname: daemon.hostname, port: daemon.port, method: request.method, path: request.url, headers: request.headers };
  const onward = http.request(options, async (back) => {
    const path = request.url === "/" ? "index.html" : request.url.match(/^\/console\/([\w./-]+)$/)?.[1];
    const file = path && !path.includes("..") && (await readFile(new URL(path, FOLDER)).catch(() => null));
    if (!file) {
      answer.writeHead(back.statusCode, back.headers);
      back.pipe(answer);
      return;
    }
    back.resume();
    // With the daemon's own policy, so that a breach shows while one writes.
    const policy = back.headers["content-security-policy"] ?? "";
    answer.writeHead(200, { "Content-Type": `${KINDS[extname(path)] ?? "text/plain"}; charset=utf-8`, "Content-Security-Policy": policy, "Cache-Control": "no-store" });
    answer.end(file);
  });
  onward.on("error", (error) => answer.writeHead(502).end(`no daemon at ${daemon}: ${error.message}\n`));
  request.pipe(onward);
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/ shows ${FOLDER.pathname} with ${daemon}`));
