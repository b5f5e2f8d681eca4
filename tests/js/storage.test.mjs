// Documents on disk: shared with automerge-repo's own adapter, whole after every end.
import assert from 'node:assert/strict';
import { cp, mkdir, readFile, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { Repo } from '@automerge/automerge-repo';
import { NodeFSStorageAdapter } from '@automerge/automerge-repo-storage-nodefs';
import { Relay, close, documentId, folder, saved, share, until } from './relay.mjs';

test('a folder that automerge-repo wrote is read', async t => {
  const at = await folder(t);
  const theirs = new Repo({ storage: new NodeFSStorageAdapter(join(at, 'documents')), network: [] });
  const handles = [];
  for (let n = 0; n < 5; n++) {
    const handle = theirs.create({ n, list: [] });
    // More than one save, so that there are increments beside a snapshot.
    for (let edit = 0; edit < 3; edit++) {
      handle.change(doc => { doc.list.push(edit); });
      await theirs.flush();
    }
    handles.push(handle);
  }
  const storageId = await theirs.storageId();
  const relay = await Relay.start(t, {}, at);
  const client = relay.client(t);
  for (const handle of handles) {
    assert.deepEqual((await client.repo.find(handle.url)).doc(), handle.doc());
  }
  const metadata = Object.values(client.repo.peerMetadataByPeerId);
  assert.equal(metadata[0].storageId, storageId, 'the folder keeps its id');
});

test('a folder that the relay wrote is read by automerge-repo', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handle = await share(client, { list: [] });
  for (let edit = 0; edit < 30; edit++) {
    handle.change(doc => { doc.list.push(edit); });
    await new Promise(resolve => setTimeout(resolve, 5));
  }
  await saved(client, handle);
  await close(client);
  const { code } = await relay.stop();
  assert.equal(code, 0);
  const theirs = new Repo({ storage: new NodeFSStorageAdapter(relay.documents), network: [] });
  assert.deepEqual((await theirs.find(handle.url)).doc(), handle.doc());
});

test('SIGTERM under continuous edits: an exit in time, and what another client saw is there', async t => {
  const relay = await Relay.start(t, { drain_timeout: '"10s"' });
  const pairs = [];
  for (let n = 0; n < 5; n++) {
    const [writer, reader] = [relay.client(t, { retry: 60_000 }), relay.client(t, { retry: 60_000 })];
    const handle = await share(writer, { n: 0 });
    const seen = await reader.repo.find(handle.url);
    pairs.push({ writer, reader, handle, seen });
  }
  const editing = setInterval(() => {
    for (const { handle } of pairs) {
      // automerge-repo 2.5.6 may throw here for a socket that is closing under it.
      try { handle.change(doc => { doc.n += 1; }); } catch { continue; }
    }
  }, 10);
  t.after(() => clearInterval(editing));
  await until('edits flow', () => pairs.every(({ seen }) => seen.doc().n > 20));
  const ended = await relay.stop();
  clearInterval(editing);
  assert.deepEqual([ended.code, ended.signal], [0, null], relay.log);
  assert.ok(ended.seconds < 10, `${ended.seconds} s`);
  const sawBefore = pairs.map(({ seen }) => seen.doc().n);
  for (const { writer, reader } of pairs) await Promise.all([close(writer), close(reader)]);
  await relay.start();
  const fresh = relay.client(t);
  for (const [index, { handle }] of pairs.entries()) {
    const there = (await fresh.repo.find(handle.url)).doc().n;
    assert.ok(there >= sawBefore[index], `${there} of ${sawBefore[index]} edits`);
  }
});

/** Every file of a document folder is one whole automerge chunk. */
async function assertNoTornFile(documents) {
  for (const entry of await readdir(documents, { recursive: true, withFileTypes: true })) {
    const path = join(entry.parentPath ?? entry.path, entry.name);
    if (!entry.isFile() || !/(snapshot|incremental)\/[^/]+$/.test(path)) continue;
    const chunk = await readFile(path);
    try {
      Automerge.loadIncremental(Automerge.init(), chunk);
    } catch (error) {
      assert.fail(`${path}: ${error}`);
    }
    assert.ok(chunk.length > 0, path);
  }
}

test('kill -9 at random moments: what was readable a second before is there, and no file is torn', async t => {
  const relay = await Relay.start(t);
  let url;
  let n = 0;
  for (let round = 0; round < 5; round++) {
    const writer = relay.client(t, { retry: 60_000 });
    const handle = url ? await writer.repo.find(url) : await share(writer, { n: 0, filler: [] });
    url = handle.url;
    assert.ok(handle.doc().n >= n, `round ${round}: ${handle.doc().n} of ${n} edits`);
    const edits = [];
    const editing = setInterval(() => {
      handle.change(doc => { doc.n += 1; doc.filler.push('x'.repeat(100)); });
      edits.push({ n: handle.doc().n, at: Date.now() });
    }, 5);
    t.after(() => clearInterval(editing));
    await new Promise(resolve => setTimeout(resolve, 1200 + Math.random() * 800));
    // Read by a fresh client now: that is what must be there in a second.
    const reader = relay.client(t, { retry: 60_000 });
    n = (await reader.repo.find(url)).doc().n;
    await new Promise(resolve => setTimeout(resolve, 1000));
    clearInterval(editing);
    await relay.kill();
    await Promise.all([close(writer), close(reader)]);
    await assertNoTornFile(relay.documents);
    await relay.start();
  }
  const last = relay.client(t);
  assert.ok((await last.repo.find(url)).doc().n >= n);
});

test('a document that cannot be stored: not ready, kept in memory, stored when the fault is gone', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  const id = [7, 8].map(documentId).find(id => id.slice(0, 2) !== handle.documentId.slice(0, 2));
  const blocked = client.repo.import(Automerge.save(Automerge.from({ n: 1 })), { docId: id });
  await saved(client, blocked);
  // A file where its folder must be: no user, root included, can write below it.
  const first = join(relay.documents, id.slice(0, 2));
  await until('it is stored', async () => (await readdir(first, { recursive: true })).some(name => /l\/./.test(name)));
  await rename(first, `${first}.aside`);
  await writeFile(first, '');
  blocked.change(doc => { doc.n = 2; });
  await until('not ready', async () => (await fetch(`${relay.url}/readyz`)).status === 503);
  assert.match(await (await fetch(`${relay.url}/readyz`)).text(), /"error":"Not ready: storage"/);
  assert.ok(await relay.metric('tonk_relay_storage_failures_total{operation="put"}') > 0);
  handle.change(doc => { doc.n = 2; });
  await saved(client, handle);
  const reader = relay.client(t);
  const read = await reader.repo.find(blocked.url);
  await until('it is served meanwhile', () => read.doc().n === 2);
  await rm(first);
  await until('ready', async () => (await fetch(`${relay.url}/readyz`)).status === 200);
  await cp(`${first}.aside`, first, { recursive: true });
  await Promise.all([close(client), close(reader)]);
  await relay.restart();
  assert.equal((await relay.client(t).repo.find(blocked.url)).doc().n, 2);
});

test('a chunk of garbage is put aside with its reason, and the document is served', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  await close(client);
  await relay.stop();
  const id = handle.documentId;
  const chunks = join(relay.documents, id.slice(0, 2), id.slice(2), 'incremental');
  await mkdir(chunks, { recursive: true });
  await writeFile(join(chunks, 'garbage'), 'this is no chunk');
  await relay.start();
  assert.equal((await relay.client(t).repo.find(handle.url)).doc().n, 1);
  const aside = join(relay.documents, 'quarantine', id.slice(0, 2), id.slice(2), 'incremental');
  assert.deepEqual((await readdir(aside)).sort(), ['garbage', 'garbage.reason']);
  assert.equal(await relay.metric('tonk_relay_storage_broken_chunks_total'), 1);
});
