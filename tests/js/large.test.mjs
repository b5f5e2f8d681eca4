// Large documents, also over a slow line.
import assert from 'node:assert/strict';
import net from 'node:net';
import { test } from 'node:test';
import { Relay, atEnd, close, saved, share, until } from './relay.mjs';

const MIB = 1 << 20;

/** Bytes that do not compress, so that this many are stored and sent. */
function noise(bytes) {
  const out = new Uint8Array(bytes);
  for (let at = 0; at < bytes; at += 65536) crypto.getRandomValues(out.subarray(at, Math.min(at + 65536, bytes)));
  return out;
}

/** A TCP line to `port` with a rate of `bitsPerSecond` towards the client. */
function slowLine(t, port, bitsPerSecond) {
  const tick = 20;
  const share = Math.floor(bitsPerSecond / 8 * tick / 1000);
  const server = net.createServer(client => {
    const relay = net.connect(port, '127.0.0.1');
    client.pipe(relay);
    let waiting = [];
    relay.on('data', data => { waiting.push(data); relay.pause(); });
    const timer = setInterval(() => {
      if (!waiting.length) return;
      const data = Buffer.concat(waiting);
      client.write(data.subarray(0, share));
      waiting = data.length > share ? [data.subarray(share)] : [];
      if (!waiting.length) relay.resume();
    }, tick);
    const end = () => { clearInterval(timer); client.destroy(); relay.destroy(); };
    for (const socket of [client, relay]) { socket.on('close', end); socket.on('error', end); }
  });
  atEnd(t, () => server.close());
  return new Promise(resolve => server.listen(0, '127.0.0.1', () => resolve(server.address().port)));
}

const size = handle => handle.doc().blobs.reduce((sum, blob) => sum + blob.length, 0);

test('a document of 20 MiB is synchronised, also over a line of 10 Mbit/s', async t => {
  const relay = await Relay.start(t);
  const writer = relay.client(t);
  // Made of many changes: automerge sends a document of few changes as a whole for every edit.
  const handle = writer.repo.create({ blobs: [] });
  for (let n = 0; n < 20; n++) handle.change(doc => { doc.blobs.push(noise(MIB)); });
  await saved(writer, handle);
  const fast = relay.client(t);
  const fetched = await fast.repo.find(handle.url);
  assert.equal(size(fetched), 20 * MIB);

  const port = await slowLine(t, relay.port, 10_000_000);
  const slow = relay.client(t, { url: `ws://127.0.0.1:${port}` });
  const start = Date.now();
  const arrived = await slow.repo.find(handle.url);
  const seconds = (Date.now() - start) / 1000;
  assert.equal(size(arrived), 20 * MIB);
  assert.ok(seconds > 10, `the line was not slow: ${seconds} s`);
  assert.equal(await relay.metric('tonk_relay_connections_ended_total{outcome="dead"}'), 0);
  handle.change(doc => { doc.after = true; });
  await until('the next edit', () => arrived.doc().after === true);
});

test('a client can synchronise many documents at once', async t => {
  const relay = await Relay.start(t);
  const writer = relay.client(t);
  const handles = await Promise.all(Array.from({ length: 200 }, (_, n) => share(writer, { n })));
  const reader = relay.client(t);
  const found = await Promise.all(handles.map(handle => reader.repo.find(handle.url)));
  found.forEach((handle, n) => assert.equal(handle.doc().n, n));
});

test('when memory is full idle documents are unloaded, then new ones refused, and nothing is lost', async t => {
  const relay = await Relay.start(t, { sync: { memory: '"64MiB"', idle_unload: '"1h"' } });
  // Each uses more memory than its size; together they use ten times the budget.
  const contents = n => ({ n, noise: noise(4 * MIB) });
  const urls = [];
  // One client after the other, so that documents without clients are unloaded.
  for (let n = 0; n < 30; n++) {
    const client = relay.client(t);
    urls.push((await share(client, contents(n))).url);
    await close(client);
  }
  assert.ok(await relay.metric('tonk_relay_rooms_unloaded_total{reason="memory"}') > 0);
  assert.equal(await relay.metric('tonk_relay_refused_total{reason="memory"}'), 0);
  // One client of all documents.
  const greedy = relay.client(t, { retry: 60_000 });
  for (const url of urls) greedy.repo.find(url).catch(() => {});
  await until('a refusal', async () => await relay.metric('tonk_relay_refused_total{reason="memory"}') > 0, 60);
  const resident = await relay.metric('process_resident_memory_bytes') / MIB;
  assert.ok(resident < 256, `${resident} MiB`);
  await close(greedy);
  for (const [n, url] of urls.entries()) {
    const client = relay.client(t);
    assert.equal((await client.repo.find(url)).doc().n, n);
    await close(client);
  }
});

test('a client that requests far more at once than its queue holds receives all of it', async t => {
  const relay = await Relay.start(t, { sync: { send_queue: '"1MiB"' } });
  const writer = relay.client(t);
  const urls = [];
  for (let n = 0; n < 24; n++) urls.push((await share(writer, { n, noise: noise(MIB) })).url);
  const reader = relay.client(t, { retry: 60_000 });
  const found = await Promise.all(urls.map(url => reader.repo.find(url)));
  assert.deepEqual(found.map(handle => handle.doc().n), urls.map((_, n) => n));
  assert.equal(await relay.metric('tonk_relay_refused_total{reason="send_queue"}'), 0);
});
