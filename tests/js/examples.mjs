// The shipped examples of proxies, with other ports and paths.
import assert from 'node:assert/strict';
import { createServer } from 'node:net';

/** Whether nothing listens on a port. */
export const isFree = port => new Promise(resolve => {
  const server = createServer();
  server.once('error', () => resolve(false));
  server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
});

const given = new Set();
/** A port outside the kernel's range of ephemeral ports. */
export async function freePort() {
  for (;;) {
    const port = 23_000 + Math.floor(Math.random() * 9_000);
    if (!given.has(port) && await isFree(port)) {
      given.add(port);
      return port;
    }
  }
}

/** Replaces a text that must be present. */
export function replace(text, changes) {
  for (const [from, to] of changes) {
    assert.ok(text.includes(from), `the example has ${from}`);
    text = text.replaceAll(from, to);
  }
  return text;
}
