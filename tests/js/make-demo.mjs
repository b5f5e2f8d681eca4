// Makes etc/demo.tonk, the bundle that `tonk-relay demo` serves: node tests/js/make-demo.mjs
import { writeFile } from 'node:fs/promises';
process.env.TONK_RELAY ??= 'unused';
const { bundle, documentId } = await import('./relay.mjs');

// The list is also named in src/cli/demo/mod.rs.
const [root, welcome, list] = [1, 2, 4].map(n => documentId(0xd0 + n));
const contents = bundle({
  [root]: { name: 'tonk-relay demo', documents: { welcome: `automerge:${welcome}`, list: `automerge:${list}` } },
  [welcome]: { text: 'This document came from the bundle that the relay serves.' },
  [list]: { todos: ['open this page in a second window', 'type something here'] },
}, { xNotes: 'The demo bundle of tonk-relay' });
await writeFile(new URL('../../etc/demo.tonk', import.meta.url), contents);
console.log(`root ${root}, welcome ${welcome}, list ${list}: ${contents.length} bytes`);
