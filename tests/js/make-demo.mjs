// Makes etc/demo.tonk, the bundle that `tonk-relay demo` serves: node tests/js/make-demo.mjs
import { writeFile } from 'node:fs/promises';
process.env.TONK_RELAY ??= 'unused';
const { bundle, documentId } = await import('./relay.mjs');

const [root, welcome, notes] = [1, 2, 3].map(n => documentId(0xd0 + n));
const contents = bundle({
  [root]: { name: 'tonk-relay demo', documents: { welcome: `automerge:${welcome}`, notes: `automerge:${notes}` } },
  [welcome]: { text: 'This document came from the bundle that the relay serves.' },
  [notes]: { lines: [] },
}, { xNotes: 'The demo bundle of tonk-relay' });
await writeFile(new URL('../../etc/demo.tonk', import.meta.url), contents);
console.log(`root ${root}, welcome ${welcome}, notes ${notes}: ${contents.length} bytes`);
