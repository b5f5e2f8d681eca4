// Runs in a box: clients that go on editing while something happens to the relay, until a file "stop" is there. Then all of
// them must have all edits, and the relay must have told that it stores them: exit 0 if so.
import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { Relay, saved, share, until } from './js/relay.mjs';

const CLIENTS = 20, EVERY = 50;
const ends = [];
const relay = new Relay('/test');
relay.port = Number(process.env.PORT ?? 8081);
const clients = Array.from({ length: CLIENTS }, () => relay.client({ after: end => ends.push(end) }));
const own = await Promise.all(clients.map(client => share(client, { edits: {} })));
const shared = await share(clients[0], { edits: {} });
const copies = await Promise.all(clients.map(client => client.repo.find(shared.url)));
let n = 0;
const editing = setInterval(() => {
  n += 1;
  copies[n % CLIENTS].change(doc => { doc.edits[n] = n; });
  own[n % CLIENTS].change(doc => { doc.edits[n] = n; });
}, EVERY);
writeFileSync('editing', '');
await until('the end', () => existsSync('stop'), 120);
clearInterval(editing);
await until('all have all', () => copies.every(copy => Object.keys(copy.doc().edits).length === n), 30);
await Promise.all(clients.map((client, i) => saved(client, own[i])));
await saved(clients[0], copies[0]);
const later = relay.client({ after: end => ends.push(end) });
for (const [i, handle] of own.entries()) {
  const found = await later.repo.find(handle.url);
  assert.deepEqual(Object.keys(found.doc().edits).length, Object.keys(own[i].doc().edits).length);
}
assert.equal(Object.keys((await later.repo.find(shared.url)).doc().edits).length, n);
console.log(`${n} edits, none lost`);
process.exit(0);
