// Attacks on a relay with 100 honest clients: the clients keep working, and memory stays within a
// limit. To measure how much slower edits become than under a process that only computes, run with
// HONEST_ROUNDS=5 HONEST_SECONDS=3.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { readFile, symlink } from 'node:fs/promises';
import { once } from 'node:events';
import { join as path } from 'node:path';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { cbor } from '@automerge/automerge-repo';
import { ATTACKS, frameHead } from './attacks.mjs';
import { BINARY, Relay, atEnd, bundle, close, documentId, entry, folder, saved, share, until, upload } from './relay.mjs';
import { syncMessageWith, chunk, connect, joined, leb, refused, runs, sendTo, sync, zeros } from './raw.mjs';

const SECONDS = Number(process.env.HONEST_SECONDS ?? 2);
const ROUNDS = Number(process.env.HONEST_ROUNDS ?? 1);
/** The most memory that the relay may use, attacked or not. */
const MEMORY = 400 << 20;
const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
const median = numbers => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)];

/** Processor time of the relay in ms, in steps of 10: what else the machine does is not in it. */
async function processorTime(relay) {
  const stat = await readFile(`/proc/${relay.child.pid}/stat`, 'utf8');
  const [user, system] = stat.slice(stat.lastIndexOf(')') + 2).split(' ').slice(11, 13).map(Number);
  return (user + system) * 10;
}

async function resident(relay) {
  const status = await readFile(`/proc/${relay.child.pid}/status`, 'utf8');
  return Number(/VmRSS:\s*(\d+)/.exec(status)[1]) * 1024;
}

/** How many messages the relay has counted as refused. */
async function countRefused(relay) {
  const text = await (await fetch(`${relay.url}/metrics`)).text();
  const sum = name => [...text.matchAll(new RegExp(`^tonk_relay_${name}_total\\{.*\\} (\\d+)`, 'gm'))].reduce((n, [, m]) => n + Number(m), 0);
  return { refused: sum('refused'), dropped: sum('messages_dropped'), throttled: sum('throttled') };
}

/** Two clients of one document: one writes, the other records how long each edit took. */
class Pair {
  static async start(t, relay, n) {
    const pair = new Pair();
    pair.id = documentId(crypto.getRandomValues(new Uint8Array(16)));
    pair.latencies = [];
    pair.sent = new Map();
    const open = async (role, doc) => {
      const socket = await joined(t, relay, `honest-${role}-${n}`, { localAddress: '127.0.0.2' });
      const side = { socket, doc, state: Automerge.initSyncState() };
      socket.removeAllListeners('message');
      socket.on('message', data => pair.hear(side, cbor.decode(data)));
      return side;
    };
    pair.writer = await open('writer', Automerge.from({ n: 0 }));
    pair.reader = await open('reader', Automerge.init());
    pair.talk(pair.writer, 'sync');
    await wait(20);
    pair.talk(pair.reader, 'request');
    await until('both have it', () => pair.reader.doc.n === 0);
    return pair;
  }

  talk(side, type = 'sync') {
    const [state, message] = Automerge.generateSyncMessage(side.doc, side.state);
    side.state = state;
    if (message) sync(side.socket, this.id, message, type);
  }

  hear(side, message) {
    if (message.type !== 'sync') return;
    [side.doc, side.state] = Automerge.receiveSyncMessage(side.doc, side.state, message.data);
    this.talk(side);
    if (side !== this.reader) return;
    for (const [n, at] of this.sent) {
      if (n <= side.doc.n) { this.latencies.push(performance.now() - at); this.sent.delete(n); }
    }
  }

  edit() {
    this.writer.doc = Automerge.change(this.writer.doc, doc => { doc.n += 1; });
    this.sent.set(this.writer.doc.n, performance.now());
    this.talk(this.writer);
  }
}

/**
 * Every pair edits twice a second for this time. Returns the 99th percentile of the latency in ms.
 */
async function work(pairs, seconds) {
  for (const pair of pairs) pair.latencies = [];
  for (let round = 0; round < seconds * 2; round++) {
    for (const pair of pairs) { pair.edit(); await wait(500 / pairs.length); }
  }
  await until('every edit has arrived', () => pairs.every(pair => pair.sent.size === 0));
  const all = pairs.flatMap(pair => pair.latencies).sort((a, b) => a - b);
  assert.equal(all.length, pairs.length * seconds * 2, 'every edit has arrived, once');
  return all[Math.floor(all.length * 0.99)];
}

/** Calls a function during an attack, and returns its result. */
async function duringAttack(relay, name, what) {
  const file = fileURLToPath(new URL('attacks.mjs', import.meta.url));
  // With a low priority, so that the attacker's own computation does not slow down the relay.
  const attack = spawn('nice', ['-n', '19', process.execPath, file, name, relay.port, SECONDS + 1.5], { stdio: 'inherit' });
  const ended = once(attack, 'exit');
  await wait(700);
  try {
    return await what();
  } finally {
    attack.kill();
    await ended;
  }
}

test('100 honest clients keep working during every attack', async t => {
  // There is no proxy here, so attackers and honest clients have different addresses.
  const relay = await Relay.start(t, { http: { trusted_proxies: '[]' }, auth: { mode: '"open"' },
    sync: { handshake_timeout: '"2s"', memory: '"1GiB"' } });
  const pairs = [];
  // As fast as one address may connect.
  for (let n = 0; n < 50; n++) { pairs.push(await Pair.start(t, relay, n)); await wait(100); }
  await work(pairs, 1);
  for (const name of Object.keys(ATTACKS)) {
    await t.test(name, async t => {
      const [quiet, attacked] = [[], []];
      let most = 0;
      for (let round = 0; round < ROUNDS; round++) {
        await until('only honest clients are connected', async () => await relay.metric('tonk_relay_connections') === 100);
        quiet.push(await duringAttack(relay, 'elsewhere', () => work(pairs, SECONDS)));
        attacked.push(await duringAttack(relay, name, async () => {
          const watch = setInterval(async () => { most = Math.max(most, await resident(relay)); }, 50);
          try { return await work(pairs, SECONDS); } finally { clearInterval(watch); }
        }));
      }
      const { refused, dropped, throttled } = await countRefused(relay);
      t.diagnostic(`refused ${refused}, dropped ${dropped}, throttled ${throttled} so far`);
      const [before, during] = [median(quiet), median(attacked)];
      t.diagnostic(`p99 ${during.toFixed(1)} ms, before ${before.toFixed(1)}: ${(during / before).toFixed(1)}x; ${(most / 2 ** 20).toFixed(0)} MiB`);
      assert.ok(most < MEMORY, `${most} bytes`);
      for (const pair of pairs) assert.ok(pair.writer.socket.readyState === 1 && pair.reader.socket.readyState === 1);
    });
  }
  const panics = await relay.metric('tonk_relay_session_panics_total') + await relay.metric('tonk_relay_room_panics_total');
  t.diagnostic(`panics: ${panics}`);
  assert.equal((await relay.stop()).code, 0);
});

test('a decompression bomb is refused at little cost, and its session continues', async t => {
  const relay = await Relay.start(t);
  const before = await resident(relay);
  const nulls = Automerge.change(Automerge.init(), doc => { doc.list = Array(600_000).fill(null); });
  const honestForm = Automerge.getLastLocalChange(nulls);
  for (const [name, bomb] of Object.entries({ runs: runs(4_000_000), deflated: zeros(1024), honestForm })) {
    const socket = await joined(t, relay, `bomber-${name}`);
    const innocent = await joined(t, relay, `innocent-${name}`);
    const start = await processorTime(relay);
    sync(socket, documentId(8), syncMessageWith(bomb), 'sync');
    const reason = await refused(socket, documentId(8));
    const took = await processorTime(relay) - start;
    assert.match(reason, /unpacks to more than 256MiB \(sync\.max_inflated\): \d+ operations/);
    assert.ok(took <= 100, `${name}: ${took} ms`);
    sync(innocent, documentId(8));
    await until('others are served', () => innocent.heard.some(({ type }) => type === 'doc-unavailable'));
    t.diagnostic(`${name}: ${bomb.length} bytes, refused after ${took} ms of processor time`);
  }
  assert.equal(await relay.metric('tonk_relay_documents_refused_total{reason="max_inflated"}'), 3);
  const id = documentId(8);
  // A document chunk with one operation column that is a single run.
  const run = chunk(0, [0, 0, 0, 1, 0x42, 7, ...leb(2 ** 40), 0]);
  const uploaded = await upload(relay, bundle({ [id]: { a: 1 } }, {}, { [entry(documentId(9))]: run }));
  assert.equal(uploaded.status, 400);
  assert.match((await uploaded.json()).error, /unpacks to more than/);
  assert.ok(await resident(relay) - before < 64 << 20, `${await resident(relay) - before} bytes`);
});

for (const engine of ['native', 'samod']) {
  test(`a change that is requested twice does not crash the room (${engine})`, async t => {
    const relay = await Relay.start(t, { sync: { engine: `"${engine}"` } });
    const writer = relay.client(t);
    const handle = await share(writer, { n: 0 });
    for (let n = 1; n < 5; n++) handle.change(doc => { doc.n = n; });
    await saved(writer, handle);
    const hash = Automerge.getHeads(handle.doc())[0].match(/../g).map(byte => parseInt(byte, 16));
    const socket = await joined(t, relay, 'asks-twice');
    sync(socket, handle.documentId, Uint8Array.from([0x42, 1, ...hash, 2, ...hash, ...hash, 0, 0]), 'sync');
    const other = relay.client(t);
    assert.equal((await other.repo.find(handle.url)).doc().n, 4);
    handle.change(doc => { doc.n = 5; });
    await saved(writer, handle);
    assert.equal(await relay.metric('tonk_relay_room_panics_total'), 0);
  });
}

test('unfinished messages use little memory, and other clients keep working', async t => {
  const mib = 1 << 20;
  const relay = await Relay.start(t, { http: { trusted_proxies: '[]' }, auth: { mode: '"open"' },
    sync: { ping_interval: '"500ms"', max_message: '"4MiB"', arriving: '"16MiB"' } });
  const before = await resident(relay);
  const alice = relay.client(t);
  const handle = await share(alice, { n: 0 });
  const begin = async (name, localAddress, size) => {
    const socket = await joined(t, relay, name, { localAddress });
    socket._socket.write(frameHead(0x82, 4 * mib));
    socket._socket.write(Buffer.alloc(size));
    return socket;
  };
  // One address may use a quarter of the budget; together they use all of it.
  const begun = [];
  for (let n = 0; n < 8; n++) begun.push(await begin(`slow-${n}`, `127.0.1.${n}`, 3.9 * mib));
  const again = await begin('again', '127.0.1.0', 3.9 * mib);
  const over = await Promise.race([again.closed, ...begun.map(({ closed }) => closed)]);
  assert.equal(over.code, 1013);
  assert.match(over.reason, /sync\.arriving/);
  assert.ok(await relay.metric('tonk_relay_arriving_bytes') <= 16 * mib);
  assert.ok(await resident(relay) < before + 48 * mib, 'memory');
  handle.change(doc => { doc.n = 1; });
  await saved(alice, handle);
  // The accepted messages arrive too slowly.
  const ends = await Promise.all(begun.map(({ closed }) => closed));
  assert.deepEqual([...new Set(ends.map(({ code }) => code))].sort(), [1008, 1013]);
  assert.match(ends.find(({ code }) => code === 1008).reason, /sync\.message_min_rate/);
  await until('nothing is reserved', async () => await relay.metric('tonk_relay_arriving_bytes') === 0);
  // A slow message that is complete is accepted.
  const steady = relay.client(t);
  const large = steady.repo.create({ bytes: crypto.getRandomValues(new Uint8Array(60_000)), more: 'x'.repeat(mib) });
  await saved(steady, large);
});

test('changes whose dependencies never arrive do not fill memory', async t => {
  const relay = await Relay.start(t, { storage: { max_document: '"200kB"' } });
  const writer = relay.client(t);
  const handle = await share(writer, { n: 0 });
  const socket = await joined(t, relay, 'orphans');
  for (let n = 0; n < 30 && socket.readyState === 1; n++) {
    const before = Automerge.from({ n });
    const after = Automerge.change(before, doc => { doc.text = crypto.randomUUID().repeat(500); });
    sync(socket, handle.documentId, syncMessageWith(Automerge.getLastLocalChange(after)), 'sync');
    await wait(20);
  }
  assert.match(await refused(socket, handle.documentId), /would be too large: \d+ bytes exceed 200kB \(storage\.max_document\)/);
  handle.change(doc => { doc.n = 1; });
  await saved(writer, handle);
});

test('a stored document that is too large is reported, and other documents are served', async t => {
  const relay = await Relay.start(t);
  const [large, small] = [documentId(1), documentId(2)];
  const lists = { [large]: Automerge.from({ list: Array(50_000).fill(null) }), [small]: { a: 1 } };
  assert.equal((await upload(relay, bundle(lists))).status, 200);
  await relay.stop();
  relay.config = { sync: { max_inflated: '"1MiB"' } };
  await relay.start();
  const client = relay.client(t);
  assert.equal((await client.repo.find(`automerge:${small}`)).doc().a, 1);
  await assert.rejects(client.repo.find(`automerge:${large}`), /unavailable/i);
  await until('it is named', () => new RegExp(`too large to load.*${large}`).test(relay.log));
  await relay.stop();
  relay.config = {};
  await relay.start();
  const again = relay.client(t);
  assert.equal((await again.repo.find(`automerge:${large}`)).doc().list.length, 50_000, 'nothing was lost');
});

test('a change that would make a document too large is refused, and the document is kept', async t => {
  const relay = await Relay.start(t, { storage: { max_changes: 20 } });
  const writer = relay.client(t, { retry: 60_000 });
  const handle = writer.repo.create({ n: 0 });
  const other = relay.client(t);
  const seen = await until('it is there', () => other.repo.find(handle.url).catch(() => undefined));
  for (let n = 1; n <= 30; n++) { handle.change(doc => { doc.n = n; }); await wait(120); }
  await until('it is refused', async () => await relay.metric('tonk_relay_documents_refused_total{reason="max_document"}') > 0);
  assert.match(relay.log, /would be too large: \d+ changes exceed 20 \(storage\.max_changes\)/);
  assert.ok(seen.doc().n >= 5 && seen.doc().n < 25, `${seen.doc().n}`);
});

test('a client that sends too fast is throttled and loses nothing', async t => {
  const relay = await Relay.start(t, { limits: { messages_per_connection: '"20/s"' } });
  const [sender, listener] = [await joined(t, relay, 'sender'), await joined(t, relay, 'listener')];
  const ephemeral = (socket, count) => sendTo(socket, { type: 'ephemeral', documentId: documentId(1), senderId: socket.us,
    targetId: socket.relay, count, sessionId: 's', data: Uint8Array.of(1) });
  ephemeral(listener, 0);
  await wait(100);
  const start = Date.now();
  for (let count = 1; count <= 100; count++) ephemeral(sender, count);
  await until('all have arrived', () => listener.heard.filter(({ type }) => type === 'ephemeral').length === 100);
  assert.ok(Date.now() - start > 2000, 'at the rate that it may');
  assert.ok(await relay.metric('tonk_relay_throttled_total{reason="messages_per_connection"}') > 0);
});

test('connections and handshakes are limited by address, also for clients behind a proxy', async t => {
  const relay = await Relay.start(t, { auth: { mode: '"open"' },
    limits: { connections_per_address: 3, handshakes_per_address: '"5/s"' } });
  const at = address => ({ headers: { 'x-forwarded-for': address } });
  const sockets = [];
  for (let n = 0; n < 3; n++) sockets.push(await joined(t, relay, `a${n}`, at('203.0.113.1')));
  const over = await (await connect(t, relay, at('203.0.113.1'))).closed;
  assert.equal(over.code, 4429);
  assert.match(over.reason, /limits\.connections_per_address/);
  await joined(t, relay, 'b', at('203.0.113.2'));
  for (let n = 0; n < 3; n++) await joined(t, relay, `six${n}`, at(`2001:db8::${n}`));
  assert.equal((await (await connect(t, relay, at('2001:db8::9'))).closed).code, 4429, 'one /64');
  for (let n = 0; n < 8; n++) await joined(t, relay, `local${n}`);
  sockets[0].close();
  await until('a permit is free again', async () => {
    const socket = await connect(t, relay, at('203.0.113.1'));
    sendTo(socket, { type: 'join', senderId: 'again', supportedProtocolVersions: ['1'] });
    await Promise.race([socket.closed, until('an answer', () => socket.heard.length)]);
    return socket.heard[0]?.type === 'peer';
  });
  const quick = [];
  for (let n = 0; n < 15; n++) quick.push(await connect(t, relay, at('203.0.113.3')));
  for (const socket of quick) socket.close();
  assert.ok(await relay.metric('tonk_relay_refused_total{reason="handshakes_per_address"}') >= 1);
});

test('the PROXY protocol gives the address of the client', async t => {
  const net = await import('node:net');
  const relay = await Relay.start(t, { auth: { mode: '"open"' }, http: { proxy_protocol: true },
    admin: { listen: '["127.0.0.1:0"]' }, limits: { connections_per_address: 2 } });
  const begin = header => new Promise(resolve => {
    const socket = net.connect(relay.port, '127.0.0.1');
    atEnd(t, () => socket.destroy());
    let heard = '';
    socket.on('data', data => { heard += data; if (heard.includes('\r\n\r\n')) resolve(heard); });
    socket.on('error', () => resolve('reset'));
    socket.on('close', () => resolve(heard || 'closed'));
    socket.write(header + 'GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n');
  });
  const line = port => `PROXY TCP4 203.0.113.7 198.51.100.1 ${port} 443\r\n`;
  for (let port = 1; port <= 2; port++) assert.match(await begin(line(port)), /^HTTP\/1\.1 101/);
  const refused = await begin(line(3));
  assert.match(refused, /^HTTP\/1\.1 101/);
  await until('it is refused', () => relay.log.includes('limits.connections_per_address'));
  assert.match(relay.log, /client="?203\.0\.113\.7/);
  assert.equal(await begin(''), 'reset', 'no header');
});

test('new documents and stored bytes of one principal are limited', async t => {
  const headers = { 'x-forwarded-for': '203.0.113.1' };
  const relay = await Relay.start(t, { auth: { mode: '"open"' }, limits: { new_documents: '"5/h"', stored_bytes: '"20kB"' } });
  const bring = async (socket, contents) => {
    const doc = Automerge.from(contents);
    sync(socket, documentId(crypto.getRandomValues(new Uint8Array(16))), syncMessageWith(Automerge.getLastLocalChange(doc)), 'sync');
  };
  const maker = await joined(t, relay, 'maker', { headers });
  for (let n = 0; n < 7; n++) await bring(maker, { n });
  const { code, reason } = await maker.closed;
  assert.equal(code, 4429);
  assert.match(reason, /limits\.new_documents/);
  const refused = await fetch(`${relay.url}/api/bundles`, { method: 'POST', body: bundle({ [documentId(9)]: { a: 1 } }),
    headers: { ...headers, 'content-type': 'application/octet-stream' } });
  assert.equal(refused.status, 429);
  const other = await joined(t, relay, 'other', { headers: { 'x-forwarded-for': '203.0.113.2' } });
  for (let n = 0; n < 3; n++) await bring(other, { text: crypto.randomUUID().repeat(400) });
  const full = await other.closed;
  assert.equal(full.code, 4429);
  assert.match(full.reason, /limits\.stored_bytes/);
});

test('requests for unknown documents are limited', async t => {
  const relay = await Relay.start(t, { limits: { unknown_documents: '"10/m"' } });
  const socket = await joined(t, relay, 'curious');
  for (let n = 0; n < 12; n++) sync(socket, documentId(n));
  const { code, reason } = await socket.closed;
  assert.equal(code, 4429);
  assert.match(reason, /limits\.unknown_documents/);
});

test('dangling links, FIFOs and folders are refused as bundle, config, key and token files', async t => {
  const at = await folder(t);
  const fifo = path(at, 'fifo');
  execFileSync('mkfifo', [fifo]);
  await symlink('/dev/zero', path(at, 'zero'));
  await symlink(path(at, 'loop'), path(at, 'loop'));
  const faults = text => {
    execFileSync('sh', ['-c', `cat > ${path(at, 'c.toml')}`], { input: text });
    try {
      execFileSync(BINARY, ['--check-config', '--config', path(at, 'c.toml')], { timeout: 10_000, stdio: 'pipe' });
    } catch (error) { return [error.status, String(error.stderr)]; }
    return [0, ''];
  };
  for (const what of ['fifo', 'zero', 'loop', '.']) {
    const file = path(at, what);
    for (const [key, text] of [['bundle.path', `[bundle]\npath = "${file}"\n`], ['auth.tokens', `[auth]\nmode = "token"\ntokens = "${file}"\n`],
      ['auth.jwt_keys', `[auth]\nmode = "jwt"\njwt_keys = "${file}"\n`], ['bundle.wasm', `[bundle]\nwasm = "${file}"\n`]]) {
      const [code, said] = faults(text);
      assert.equal(code, 78, `${key} ${what}`);
      assert.ok(said.includes(key), said);
    }
    let status = 0;
    try { execFileSync(BINARY, ['--config', file], { timeout: 10_000, stdio: 'pipe' }); } catch (error) { status = error.status; }
    assert.equal(status, 78, `a config that is ${what}`);
  }
});
