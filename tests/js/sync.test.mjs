// Two real clients of automerge-repo with the relay between them.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { Repo, cbor } from '@automerge/automerge-repo';
import { NodeFSStorageAdapter } from '@automerge/automerge-repo-storage-nodefs';
import WebSocket from 'ws';
import { joined, sync } from './raw.mjs';
import { Relay, SharedFolder, atEnd, close, documentId, folder, saved, share, until } from './relay.mjs';

const url = id => `automerge:${id}`;

test('clients create, find and edit documents in both directions', async t => {
  const relay = await Relay.start(t);
  const [alice, bob] = [relay.client(t), relay.client(t)];
  const hers = await share(alice, { title: 'hello', list: [] });
  const his = await bob.repo.find(hers.url);
  assert.equal(his.doc().title, 'hello');
  his.change(doc => { doc.list.push('from bob'); });
  hers.change(doc => { doc.list.push('from alice'); });
  await until('both have both', () => hers.doc().list.length === 2 && his.doc().list.length === 2);
  assert.deepEqual(hers.doc(), his.doc());
});

test('clients see each other\'s presence', async t => {
  const relay = await Relay.start(t);
  const [alice, bob] = [relay.client(t), relay.client(t)];
  const hers = await share(alice, {});
  const his = await bob.repo.find(hers.url);
  const [seenByBob, seenByAlice] = [[], []];
  his.on('ephemeral-message', ({ message, senderId }) => seenByBob.push({ message, senderId }));
  hers.on('ephemeral-message', ({ message }) => seenByAlice.push(message));
  hers.broadcast({ cursor: 1 });
  await until('bob sees alice', () => seenByBob.length === 1);
  assert.deepEqual(seenByBob, [{ message: { cursor: 1 }, senderId: alice.repo.networkSubsystem.peerId }]);
  his.broadcast({ cursor: 2 });
  await until('alice sees bob', () => seenByAlice.length === 1);
  for (let n = 0; n < 20; n++) hers.broadcast({ cursor: n });
  await until('each is sent once', () => seenByBob.length === 21);
  // Each client sends the presence it receives back to the relay, in its author's name.
  const dropped = reason => relay.metric(`tonk_relay_messages_dropped_total{reason="${reason}"}`);
  await until('the echoes', async () => await dropped('echo') >= 22);
  assert.equal(await dropped('sender'), 0);
  assert.doesNotMatch(relay.log, / WARN /);
});

test('an edit made offline arrives when its author reconnects', async t => {
  const relay = await Relay.start(t);
  const [alice, bob] = [relay.client(t), relay.client(t)];
  const hers = await share(alice, { n: 0 });
  const his = await bob.repo.find(hers.url);
  bob.adapter.disconnect();
  await until('bob has left', async () => await relay.metric('tonk_relay_connections') === 1);
  his.change(doc => { doc.offline = true; });
  hers.change(doc => { doc.n = 1; });
  bob.adapter.connect(bob.repo.networkSubsystem.peerId, bob.repo.peerMetadata ?? {});
  await until('both edits meet', () => hers.doc().offline && his.doc().n === 1);
});

test('what a client sends right before it vanishes is kept', async t => {
  const relay = await Relay.start(t);
  const bob = relay.client(t);
  for (let round = 1; round <= 5; round++) {
    let doc = Automerge.from({ n: 0 });
    for (let n = 1; n <= 100; n++) doc = Automerge.change(doc, doc => { doc.n = n; });
    const [id, alice] = [documentId(round), await joined(t, relay, `alice-${round}`)];
    // The relay wakes up when all has arrived and she is gone: it can answer none of it.
    relay.child.kill('SIGSTOP');
    for (const change of Automerge.getAllChanges(doc)) {
      const heads = [Automerge.decodeChange(change).hash];
      sync(alice, id, Automerge.encodeSyncMessage({ heads, need: [], have: [], changes: [change] }), 'sync');
    }
    await until('her messages arrive', async () => await unacknowledged(alice._socket) === 0);
    alice._socket.resetAndDestroy();
    relay.child.kill('SIGCONT');
    const handle = await bob.repo.find(url(id));
    await until('all she has sent', () => handle.doc().n === 100);
  }
});

/** The bytes that a socket has sent and its peer's kernel has not received (proc(5), /proc/net/tcp). */
async function unacknowledged({ localPort, remotePort }) {
  const port = number => number.toString(16).toUpperCase().padStart(4, '0');
  const lines = (await readFile('/proc/net/tcp', 'utf8')).split('\n').map(line => line.trim().split(/\s+/));
  const line = lines.find(([, local, remote]) => local?.endsWith(`:${port(localPort)}`) && remote.endsWith(`:${port(remotePort)}`));
  return parseInt(line[4], 16);
}

test('clients keep working after the relay restarts between edits', async t => {
  const relay = await Relay.start(t);
  const [alice, bob] = [relay.client(t), relay.client(t)];
  const hers = await share(alice, { n: 0 });
  const his = await bob.repo.find(hers.url);
  for (let n = 1; n <= 3; n++) {
    const ended = await relay.restart();
    assert.deepEqual([ended.code, ended.signal], [0, null], relay.log);
    (n % 2 ? hers : his).change(doc => { doc.n = n; });
    await until(`edit ${n}`, () => hers.doc().n === n && his.doc().n === n);
  }
});

test('an unknown document is unavailable, and arrives later', async t => {
  const relay = await Relay.start(t);
  const [alice, bob] = [relay.client(t), relay.client(t)];
  const id = documentId(7);
  await assert.rejects(bob.repo.find(url(id)), /unavailable/);
  const hers = alice.repo.import(Automerge.save(Automerge.from({ title: 'here now' })), { docId: id });
  await saved(alice, hers);
  await until('the document arrives', () => bob.repo.handles[id].state === 'ready');
  assert.equal(bob.repo.handles[id].doc().title, 'here now');
});

test('a document that only another client has is found through the relay', async t => {
  const relay = await Relay.start(t);
  // A document that Bob created while he was offline.
  const storage = await folder(t);
  const shared = new SharedFolder(storage);
  const offline = new Repo({ storage: shared, network: [] });
  const secret = offline.create({ only: 'bob' });
  await shared.flush(offline);
  const alice = relay.client(t);
  const bob = relay.client(t, { repo: { storage: new NodeFSStorageAdapter(storage) } });
  const hers = await share(alice, { shared: true });
  await bob.repo.find(hers.url);
  const found = await alice.repo.find(secret.url);
  assert.equal(found.doc().only, 'bob');
});

test('a client that could not find a document receives it later', async t => {
  const relay = await Relay.start(t);
  const [alice, bob, carol] = [relay.client(t), relay.client(t), relay.client(t)];
  const hers = await share(alice, { shared: true });
  await bob.repo.find(hers.url);
  const id = documentId(8);
  await assert.rejects(bob.repo.find(url(id)), /unavailable/);
  const late = carol.repo.import(Automerge.save(Automerge.from({ only: 'carol' })), { docId: id });
  await saved(carol, late);
  await until('alice has it', async () => {
    const found = await alice.repo.find(url(id)).catch(() => undefined);
    return found?.doc().only === 'carol';
  });
});

test('documents are independent', async t => {
  const relay = await Relay.start(t);
  const [alice, bob] = [relay.client(t), relay.client(t)];
  alice.repo.create({ secret: true });
  const shared = await share(alice, { shared: true });
  await bob.repo.find(shared.url);
  assert.deepEqual(Object.keys(bob.repo.handles), [shared.documentId]);
});

test('an idle document is unloaded, and loaded again completely', async t => {
  const relay = await Relay.start(t, { sync: { idle_unload: '"200ms"' } });
  const alice = relay.client(t);
  const handle = await share(alice, { n: 1 });
  assert.equal(await relay.metric('tonk_relay_rooms{state="live"}'), 1);
  await close(alice);
  await until('no room', async () => await relay.metric('tonk_relay_rooms{state="live"}') === 0);
  assert.equal(await relay.metric('tonk_relay_room_engine_tasks'), 0);
  const bob = relay.client(t);
  assert.equal((await bob.repo.find(handle.url)).doc().n, 1);
});

test('memory of unloaded documents is reused', async t => {
  const relay = await Relay.start(t, { sync: { idle_unload: '"100ms"' } });
  const contents = { text: 'x'.repeat(1000), list: Array.from({ length: 200 }, (_, n) => n) };
  const resident = [];
  for (let round = 0; round < 10; round++) {
    const client = relay.client(t);
    const handles = Array.from({ length: 150 }, () => client.repo.create(contents));
    for (const handle of handles) await saved(client, handle);
    await close(client);
    await until('no room', async () => await relay.metric('tonk_relay_rooms{state="live"}') === 0);
    resident.push(await relay.metric('process_resident_memory_bytes'));
  }
  // The allocator takes another piece now and then, but not in both halves; a leak grows in both.
  const growth = Math.min(resident[5] / resident[1], resident[9] / resident[5]);
  assert.ok(growth < 1.3, `${resident.map(bytes => Math.round(bytes / 1024))} KiB`);
});

test('a newer connection of the same peer replaces the older one', async t => {
  const relay = await Relay.start(t);
  const join = cbor.encode({ type: 'join', senderId: 'tab', peerMetadata: {}, supportedProtocolVersions: ['1'] });
  const connect = async () => {
    const socket = new WebSocket(relay.ws);
    atEnd(t, () => socket.terminate());
    await new Promise((resolve, reject) => { socket.on('open', resolve); socket.on('error', reject); });
    socket.closed = new Promise(resolve => socket.on('close', (code, reason) => resolve({ code, reason: String(reason) })));
    const answer = new Promise(resolve => socket.once('message', data => resolve(cbor.decode(data))));
    socket.send(join);
    assert.equal((await answer).type, 'peer');
    return socket;
  };
  const older = await connect();
  const newer = await connect();
  const { code, reason } = await older.closed;
  assert.equal(code, 1000);
  assert.match(reason, /connected again \(connection c\d+\)/);
  assert.equal(newer.readyState, WebSocket.OPEN);
});
