// The served bundle: clients that have only its slim form, and hot reload.
import assert from 'node:assert/strict';
import { readFile, rename, rm, symlink, mkdir, writeFile, access } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { unzipSync, strFromU8 } from 'fflate';
import { Relay, bundle, close, documentId, entry, folder, saved, until } from './relay.mjs';

const ids = Array.from({ length: 10 }, (_, n) => documentId(n + 1));
const tenDocuments = extra => bundle(Object.fromEntries(ids.map((id, n) => [id, { name: `document ${n}`, ...extra }])));
const serving = path => ({ bundle: { path: `"${path}"` } });

async function slim(relay) {
  const response = await fetch(`${relay.url}/.manifest.tonk`);
  assert.equal(response.status, 200);
  return unzipSync(new Uint8Array(await response.arrayBuffer()));
}

/** Boots as a Tonk client does: fetches the slim form, then finds every other document by sync. */
async function findAll(t, relay, all) {
  const client = relay.client(t);
  const files = await slim(relay);
  const { rootId } = JSON.parse(strFromU8(files['manifest.json']));
  client.repo.import(files[entry(rootId)], { docId: rootId });
  const found = {};
  for (const id of all) found[id] = (await client.repo.find(`automerge:${id}`)).doc();
  return found;
}

test('a client that has only the slim bundle finds every document on a fresh relay', async t => {
  const at = await folder(t);
  await writeFile(join(at, 'app.tonk'), tenDocuments());
  const relay = await Relay.start(t, serving(join(at, 'app.tonk')), at);
  assert.deepEqual(Object.keys(await slim(relay)), ['manifest.json', entry(ids[0])]);
  const found = await findAll(t, relay, ids);
  ids.forEach((id, n) => assert.equal(found[id].name, `document ${n}`));
});

test('a client that has only the slim bundle of a real app finds every document', async t => {
  const path = new URL('../../../shared/bundles/app.tonk', import.meta.url).pathname;
  try { await access(path); } catch { return t.skip('no ../shared/bundles/app.tonk'); }
  const relay = await Relay.start(t, serving(path));
  const names = Object.keys(unzipSync(await readFile(path))).filter(name => name.startsWith('storage/'));
  const all = names.map(name => name.split('/').slice(1, 3).join(''));
  const found = await findAll(t, relay, all);
  for (const id of all) assert.ok(Object.keys(found[id]).length > 0, id);
});

test('an edited bundle document is complete without the bundle, after kill -9', async t => {
  const at = await folder(t);
  const path = join(at, 'app.tonk');
  await writeFile(path, tenDocuments({ body: 'x'.repeat(2000) }));
  const relay = await Relay.start(t, serving(path), at);
  const alice = relay.client(t);
  const handle = await alice.repo.find(`automerge:${ids[3]}`);
  await assert.rejects(access(join(relay.documents, ids[3].slice(0, 2))), 'reading stores nothing');
  handle.change(doc => { doc.edited = true; });
  await saved(alice, handle);
  await new Promise(resolve => setTimeout(resolve, 200));
  await relay.kill();
  await close(alice);
  await rm(path);
  relay.config = {};
  await relay.start();
  const doc = (await relay.client(t).repo.find(`automerge:${ids[3]}`)).doc();
  assert.equal(doc.edited, true);
  assert.equal(doc.name, 'document 3');
  assert.equal(doc.body.length, 2000);
});

test('a snapshot with another history is refused and reported, and the stored document is kept', async t => {
  const at = await folder(t);
  const path = join(at, 'app.tonk');
  await writeFile(path, bundle({ [ids[0]]: { from: 'bundle' } }));
  const relay = await Relay.start(t, { ...serving(path), sync: { idle_unload: '"100ms"' } }, at);
  const alice = relay.client(t);
  const handle = await alice.repo.find(`automerge:${ids[0]}`);
  handle.change(doc => { doc.mine = true; });
  await saved(alice, handle);
  await writeFile(path, bundle({ [ids[0]]: { from: 'another history' } }));
  await until('it is reported', async () =>
    await relay.metric('tonk_relay_storage_unrelated_snapshots_total') === 1);
  assert.match(relay.log, /another history/);
  const bob = relay.client(t);
  assert.deepEqual((await bob.repo.find(`automerge:${ids[0]}`)).doc(), { from: 'bundle', mine: true });
});

test('a live document merges a new bundle\'s snapshot', async t => {
  const at = await folder(t);
  const path = join(at, 'app.tonk');
  const first = Automerge.from({ version: 1 });
  await writeFile(path, bundle({ [ids[0]]: first }));
  const relay = await Relay.start(t, serving(path), at);
  const handle = await relay.client(t).repo.find(`automerge:${ids[0]}`);
  handle.change(doc => { doc.mine = true; });
  await writeFile(path, bundle({ [ids[0]]: Automerge.change(Automerge.clone(first), doc => { doc.version = 2; }) }));
  await until('the new snapshot', () => handle.doc().version === 2);
  assert.equal(handle.doc().mine, true);
});

test('a hot reload fails no request, and no answer mixes old and new', async t => {
  const at = await folder(t);
  const versions = new Map();
  const write = async (path, n) => {
    const root = documentId(100 + n);
    versions.set(root, n);
    await writeFile(path, bundle({ [root]: { n } }));
  };
  for (const release of ['r0', 'r1', 'r2']) await mkdir(join(at, release));
  await symlink('r0', join(at, 'current'));
  await write(join(at, 'r0/app.tonk'), 0);
  const relay = await Relay.start(t, serving(join(at, 'current/app.tonk')), at);

  let asking = true;
  let answers = 0;
  const etags = new Map();
  const ask = async () => {
    while (asking) {
      const response = await fetch(`${relay.url}/.manifest.tonk`);
      assert.equal(response.status, 200);
      const files = unzipSync(new Uint8Array(await response.arrayBuffer()));
      const { rootId } = JSON.parse(strFromU8(files['manifest.json']));
      assert.equal(Automerge.load(files[entry(rootId)]).n, versions.get(rootId));
      const etag = response.headers.get('etag');
      assert.equal(etags.get(etag) ?? rootId, rootId, 'an ETag names one content');
      etags.set(etag, rootId);
      answers++;
    }
  };
  const asked = Promise.all([ask(), ask(), ask()]);
  const served = async () => {
    const files = await slim(relay);
    return versions.get(JSON.parse(strFromU8(files['manifest.json'])).rootId);
  };
  await write(join(at, 'r0/app.tonk'), 1);
  await until('a rewrite in place', async () => await served() === 1);
  await write(join(at, 'r0/new'), 2);
  await rename(join(at, 'r0/new'), join(at, 'r0/app.tonk'));
  await until('a rename over it', async () => await served() === 2);
  for (const [n, release] of [[3, 'r1'], [4, 'r2']]) {
    await write(join(at, release, 'app.tonk'), n);
    await symlink(release, join(at, 'next'));
    await rename(join(at, 'next'), join(at, 'current'));
    await until('a switched symlink', async () => await served() === n);
  }
  await writeFile(join(at, 'r2/app.tonk'), 'no bundle');
  await until('the failed load', async () =>
    await relay.metric('tonk_relay_bundle_loads_total{result="failed"}') >= 1);
  assert.equal(await served(), 4, 'the last good one');
  assert.match(relay.log, /cannot serve the changed bundle; still serving the last good one.*not a ZIP/);
  assert.equal(await (await fetch(`${relay.url}/readyz`)).text(), 'degraded: bundle\n');
  await write(join(at, 'r2/app.tonk'), 5);
  await until('the next good one', async () => await served() === 5);
  assert.equal(await (await fetch(`${relay.url}/readyz`)).text(), 'ok\n');
  asking = false;
  await asked;
  assert.ok(answers > 50, `${answers} answers`);
});

test('the relay warns at its start if the bundle sends clients to other servers', async t => {
  const at = await folder(t);
  const path = join(at, 'app.tonk');
  await writeFile(path, bundle({ [ids[0]]: { n: 1 } }, { networkUris: ['wss://other.example.org'] }));
  const config = { ...serving(path), http: { public_url: '"wss://sync.example.org"' } };
  const relay = await Relay.start(t, config, at);
  assert.match(relay.log, /WARN.*sends clients to other servers.*wss:\/\/other\.example\.org/);
  await relay.stop();
  relay.config.http.public_url = '"https://other.example.org/"';
  await relay.start();
  assert.doesNotMatch(relay.log, /elsewhere/);
});
