// Documents on disk: compatible with automerge-repo's own adapter, and complete however the relay
// ends.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdir, readFile, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { Repo, cbor, decodeHeads } from '@automerge/automerge-repo';
import { NodeFSStorageAdapter } from '@automerge/automerge-repo-storage-nodefs';
import { Relay, SharedFolder, atEnd, bundle, close, documentId, fill, folder, saved, share, smallDisk, until } from './relay.mjs';

const url = id => `automerge:${id}`;

test('the relay reads a folder that automerge-repo wrote', async t => {
  const at = await folder(t);
  const storage = new SharedFolder(join(at, 'documents'));
  const theirs = new Repo({ storage, network: [] });
  const handles = [];
  for (let n = 0; n < 5; n++) {
    const handle = theirs.create({ n, list: [] });
    // More than one save, so that there are increments besides a snapshot.
    for (let edit = 0; edit < 3; edit++) {
      handle.change(doc => { doc.list.push(edit); });
      await storage.flush(theirs);
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

test('automerge-repo reads a folder that the relay wrote', async t => {
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

test('a folder with thousands of increments is read and compacted into one snapshot', async t => {
  const at = await folder(t);
  const documents = join(at, 'documents');
  const adapter = new NodeFSStorageAdapter(documents);
  const id = documentId(9);
  let doc = Automerge.init();
  for (let n = 0; n < 3000; n++) {
    doc = Automerge.change(doc, doc => { doc.n = n; });
    const change = Automerge.getLastLocalChange(doc);
    await adapter.save([id, 'incremental', Automerge.decodeChange(change).hash], change);
  }
  const relay = await Relay.start(t, { storage: { grace: '"100ms"' } }, at);
  const client = relay.client(t);
  const handle = await client.repo.find(url(id));
  assert.equal(handle.doc().n, 2999);
  handle.change(doc => { doc.n = 'and one more'; });
  await saved(client, handle);
  const chunks = async () => (await new NodeFSStorageAdapter(documents).loadRange([id])).map(({ key }) => key[1]);
  await until('the increments are gone', async () => (relay.command('checkpoint'), (await chunks()).length === 1), 60);
  assert.deepEqual(await chunks(), ['snapshot']);
  await close(client);
  await relay.kill();
  const theirs = new Repo({ storage: new NodeFSStorageAdapter(documents), network: [] });
  assert.equal((await theirs.find(url(id))).doc().n, 'and one more');
});

test('another program that reads the folders always finds every saved change', async t => {
  const relay = await Relay.start(t, { storage: { grace: '"3s"', journal_size: '"16KiB"' } });
  const client = relay.client(t);
  const handle = await share(client, { n: 0, filler: '' });
  relay.command('checkpoint');
  let [there, loads, done] = [0, 0, false];
  const reading = (async () => {
    while (!done) {
      const least = there;
      const chunks = await new NodeFSStorageAdapter(relay.documents).loadRange([handle.documentId]);
      // A chunk that was deleted after it was listed has no data; automerge-repo ignores it.
      const order = chunks.filter(({ data }) => data).sort((a, b) => b.key[1].localeCompare(a.key[1]));
      const bytes = Buffer.concat(order.map(({ data }) => data));
      const { n } = Automerge.load(bytes);
      assert.ok(n >= least, `${n} of ${least}`);
      loads++;
    }
  })();
  for (let n = 1; n <= 60; n++) {
    handle.change(doc => { doc.n = n; doc.filler = String(Math.random()).repeat(40); });
    await saved(client, handle);
    relay.command('checkpoint');
    there = n;
    await new Promise(resolve => setTimeout(resolve, 50));
  }
  done = true;
  await reading;
  assert.ok(loads > 60, `${loads} loads`);
  await until('what was replaced is deleted', async () =>
    (await new NodeFSStorageAdapter(relay.documents).loadRange([handle.documentId])).length < 30);
});

test('a checkpoint moves everything into the folders, with the relay running or stopped', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const read = async url => {
    const theirs = new Repo({ storage: new NodeFSStorageAdapter(relay.documents), network: [] });
    return (await theirs.find(url)).doc().n;
  };
  const handle = await share(client, { n: 1 });
  await assert.rejects(read(handle.url), /unavailable/, 'it is in the journal');
  assert.match(relay.command('checkpoint'), /^1 chunk moved; the folders now contain all changes\n$/);
  assert.equal(await read(handle.url), 1);
  assert.deepEqual(JSON.parse(relay.command('checkpoint', '--json')), { moved: 0 });

  handle.change(doc => { doc.n = 2; });
  await saved(client, handle);
  await close(client);
  await relay.kill();
  assert.equal(await read(handle.url), 1);
  // The owner may be another user than the one who runs the command; root must not change the
  // owner.
  if (process.getuid() === 0) {
    execFileSync('chown', ['-R', '65534:65534', relay.documents, join(relay.at, 'bundles')]);
    execFileSync('chmod', ['755', relay.at]);
  }
  assert.match(relay.command('checkpoint'), /^1 chunk moved/);
  assert.equal(await read(handle.url), 2);
  for (const name of await readdir(relay.documents, { recursive: true })) {
    const { uid } = await stat(join(relay.documents, name));
    assert.equal(uid, process.getuid() === 0 ? 65534 : process.getuid(), name);
  }
});

test('a stored document can be inspected, with the relay running or stopped', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  const [head] = decodeHeads(handle.heads());
  const inspect = () => {
    const found = JSON.parse(relay.command('doc', handle.url, '--json'));
    assert.equal(found.document, handle.documentId);
    assert.deepEqual(found.heads, [head]);
    assert.equal(found.chunks.length, 1);
    assert.equal(found.bytes, found.chunks[0].bytes);
    assert.ok(Math.abs(Date.parse(found.last_change) - Date.now()) < 60_000, found.last_change);
    assert.match(relay.command('doc', handle.documentId), new RegExp(`heads +${head}\\n`));
  };
  inspect();
  await assert.rejects(async () => relay.command('doc', documentId(99)), /nothing is stored of this document/);
  await assert.rejects(async () => relay.command('doc', 'nonsense'), /nonsense/);
  await close(client);
  await relay.stop();
  inspect();
});

test('after SIGTERM during edits the relay exits in time, and keeps what another client has seen', async t => {
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
      // automerge-repo 2.5.6 may throw here if its socket is closing.
      try { handle.change(doc => { doc.n += 1; }); } catch { continue; }
    }
  }, 10);
  atEnd(t, () => clearInterval(editing));
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

/** Asserts that every file of a document folder is one complete automerge chunk. */
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

test('kill -9 at random moments keeps what was readable a second before, and tears no file', async t => {
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
    atEnd(t, () => clearInterval(editing));
    await new Promise(resolve => setTimeout(resolve, 1200 + Math.random() * 800));
    // What a new client reads now must be durable in a second.
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

test('on a full disk the relay is not ready, serves changes from memory, and stores them once there is room', async t => {
  const at = await smallDisk(t, 8);
  if (!at) return;
  const relay = await Relay.start(t, {}, at);
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  const ballast = await fill(at);
  handle.change(doc => { doc.n = 2; });
  await until('not ready', async () => (await fetch(`${relay.url}/readyz`)).status === 503);
  const answer = await (await fetch(`${relay.url}/readyz`)).text();
  assert.match(answer, /"error":"Not ready: storage"/);
  assert.ok(await relay.metric('tonk_relay_storage_failures_total{operation="put"}') > 0);
  assert.ok(await relay.metric('tonk_relay_storage_unsaved_bytes') > 0);
  const reader = relay.client(t);
  const read = await reader.repo.find(handle.url);
  await until('it is served meanwhile', () => read.doc().n === 2);
  await rm(ballast);
  await until('ready', async () => (await fetch(`${relay.url}/readyz`)).status === 200);
  await until('saved', async () => await relay.metric('tonk_relay_storage_unsaved_bytes') === 0);
  await relay.kill();
  await Promise.all([close(client), close(reader)]);
  await relay.start();
  assert.equal((await relay.client(t).repo.find(handle.url)).doc().n, 2);
});

test('when space is low new documents and uploads wait, and edits continue', async t => {
  const at = await smallDisk(t, 32);
  if (!at) return;
  const relay = await Relay.start(t, { storage: { min_free: '"16MiB"' } }, at);
  const [client, other] = [relay.client(t), relay.client(t)];
  const handle = await share(client, { n: 1 });
  const ballast = join(at, 'ballast');
  await writeFile(ballast, Buffer.alloc(20 << 20));
  const isDegraded = () => relay.command('status').includes('degraded     space: ');
  await until('it is degraded', isDegraded);
  assert.ok(await relay.metric('tonk_relay_storage_free_bytes') < 16 << 20);
  assert.match(relay.command('status'), /degraded +space: .*less than storage.min_free/);

  const fresh = client.repo.create({ n: 'new' });
  await until('it is refused', async () =>
    await relay.metric('tonk_relay_messages_dropped_total{reason="no_space"}') > 0);
  await assert.rejects(other.repo.find(fresh.url), /unavailable/);
  handle.change(doc => { doc.n = 2; });
  await saved(client, handle);
  const upload = () => fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: bundle({ [documentId(4)]: { n: 1 } }),
  });
  assert.equal((await upload()).status, 507);

  await rm(ballast);
  await saved(client, fresh);
  assert.equal((await relay.client(t).repo.find(fresh.url)).doc().n, 'new');
  assert.equal((await upload()).status, 200);
  assert.equal((await fetch(`${relay.url}/readyz`)).status, 200);
  assert.ok(!isDegraded());
});

test('an invalid chunk is quarantined with the reason, and the document is served', async t => {
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

/** A client that is told which heads are durable in the relay's storage. */
async function subscriber(t, relay) {
  const client = relay.client(t, { repo: { enableRemoteHeadsGossiping: true } });
  const storageId = await storageOf(client);
  client.repo.subscribeToRemotes([storageId]);
  return Object.assign(client, { storageId });
}

const storageOf = client => until('the handshake', () =>
  Object.values(client.repo.peerMetadataByPeerId).find(peer => peer?.storageId)?.storageId);

test('a writer is told only of durable heads, and readers do not wait for them', async t => {
  const at = await smallDisk(t, 8);
  if (!at) return;
  const relay = await Relay.start(t, {}, at);
  const [writer, reader] = [await subscriber(t, relay), await subscriber(t, relay)];
  const handle = await share(writer, { n: 1 });
  const read = await reader.repo.find(handle.url);
  const heard = [];
  read.on('remote-heads', ({ storageId, heads, timestamp }) => {
    if (storageId === reader.storageId) heard.push({ heads: [...heads], timestamp });
  });
  const isSaved = () => JSON.stringify(handle.getSyncInfo(writer.storageId).lastHeads) === JSON.stringify(handle.heads());
  assert.ok(isSaved());

  const ballast = await fill(at);
  handle.change(doc => { doc.n = 2; });
  await until('the reader has it', () => read.doc().n === 2);
  await until('the write fails', async () => await relay.metric('tonk_relay_storage_failures_total{operation="put"}') > 0);
  handle.change(doc => { doc.n = 3; });
  await until('the reader has this too', () => read.doc().n === 3);
  assert.ok(!isSaved(), 'the writer was told that it is saved');

  await rm(ballast);
  await until('the writer is told that it is saved', isSaved);
  await until('the reader is told of the durable heads', () =>
    heard.some(({ heads }) => JSON.stringify(heads) === JSON.stringify(handle.heads())));
  await relay.kill();
  await close(writer);
  await close(reader);
  await relay.start();
  assert.equal((await relay.client(t).repo.find(handle.url)).doc().n, 3);
});

test('a client whose clock is an hour ahead is told that its changes are saved', async t => {
  const relay = await Relay.start(t);
  const now = Date.now;
  atEnd(t, () => { Date.now = now; });
  Date.now = () => now() + 3_600_000;
  const client = await subscriber(t, relay);
  const handle = client.repo.create({ n: 0 });
  for (let n = 1; n <= 3; n++) {
    handle.change(doc => { doc.n = n; });
    await saved(client, handle);
  }
});

test('durable heads are sent on joining, and only for joined documents', async t => {
  const relay = await Relay.start(t);
  const writer = relay.client(t);
  const [mine, other] = [await share(writer, { n: 1 }), await share(writer, { n: 1 })];
  const reader = await subscriber(t, relay);
  const told = [];
  const receive = reader.adapter.receiveMessage.bind(reader.adapter);
  reader.adapter.receiveMessage = bytes => {
    const message = cbor.decode(new Uint8Array(bytes));
    if (message.type === 'remote-heads-changed') told.push(message);
    receive(bytes);
  };
  const read = await reader.repo.find(mine.url);
  await until('the heads on joining', () => told.length > 0);
  for (let n = 2; n <= 4; n++) {
    for (const handle of [mine, other]) {
      handle.change(doc => { doc.n = n; });
      await saved(writer, handle);
    }
  }
  await until('every edit', () => read.doc().n === 4);
  await until('the last heads', () =>
    JSON.stringify(told.at(-1).newHeads[reader.storageId].heads) === JSON.stringify(mine.heads()));
  assert.ok(told.every(message => message.documentId === mine.documentId));
  const times = told.map(message => message.newHeads[reader.storageId].timestamp);
  assert.ok(times.every((time, n) => Number.isInteger(time) && (n === 0 || time > times[n - 1])), `${times}`);
});
