// The resources of running uploads, which are released when an upload fails.
import assert from 'node:assert/strict';
import { mkdir, readdir, rmdir } from 'node:fs/promises';
import { statfsSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { EMPTY_CHANGES } from './attacks.mjs';
import { Relay, atEnd, bundle, documentId, entry, smallDisk, until, upload } from './relay.mjs';

const MIB = 1 << 20;
const id = documentId(1);

/**
 * An upload whose body is sent in steps; `answer` is the first line of the response, once there is
 * one.
 */
function begin(t, relay, client, headers = '') {
  const socket = net.connect(relay.port, '127.0.0.1');
  atEnd(t, () => socket.destroy());
  const upload = { socket, heard: '' };
  socket.on('error', () => {});
  socket.on('data', data => { upload.heard += data; });
  socket.write(`POST /api/bundles HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: ${client}\r\n${headers}`
    + 'Content-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n');
  upload.send = bytes => { socket.write(`${bytes.length.toString(16)}\r\n`); socket.write(bytes); socket.write('\r\n'); };
  upload.status = () => Number(/^HTTP\/1\.1 (\d+)/.exec(upload.heard)?.[1]);
  return upload;
}

const GZIP = 'Content-Encoding: gzip\r\n';
/** gzip of this many bytes of zeros, a thousandth of that on the line. */
const zeros = bytes => gzipSync(Buffer.alloc(bytes), { level: 9 });
const receiving = relay => relay.metric('tonk_relay_bundle_receiving_bytes');

test('a relay whose store is "none" accepts no bundle, and has none', async t => {
  const relay = await Relay.start(t, { bundles: { store: '"none"' } });
  const id = documentId(1);
  const refused = await upload(relay, bundle({ [id]: { app: true } }));
  assert.equal(refused.status, 403);
  assert.match((await refused.json()).error, /bundles\.store/);
  assert.equal((await fetch(`${relay.url}/api/bundles/${id}`)).status, 404);
  assert.equal((await fetch(`${relay.url}/readyz?balancer`)).status, 200);
});

test('running uploads share a budget of disk space, in total and by address, and release it', async t => {
  const relay = await Relay.start(t, { auth: { mode: '"open"' }, bundles: { max_upload: '"4MiB"', receiving: '"8MiB"' } });
  const first = begin(t, relay, '203.0.113.1', GZIP);
  first.send(zeros(3 * MIB));
  await until('the first is on the disk', async () => await receiving(relay) >= 3 * MIB);
  const greedy = begin(t, relay, '203.0.113.1', GZIP);
  greedy.send(zeros(3 * MIB));
  await until('the address has its share', () => greedy.status() === 429);
  assert.match(greedy.heard, /share of bundles\.receiving/);
  assert.match(greedy.heard, /retry-after: 5/i);
  const second = begin(t, relay, '203.0.113.2', GZIP);
  second.send(zeros(3 * MIB));
  await until('the second is on the disk', async () => await receiving(relay) >= 6 * MIB);
  const late = begin(t, relay, '203.0.113.3', GZIP);
  late.send(zeros(3 * MIB));
  await until('the budget is used up', () => late.status() === 503);
  assert.match(late.heard, /8MiB \(bundles\.receiving\)/);
  assert.equal(first.status(), NaN, 'it goes on');
  for (const { socket } of [first, second, late, greedy]) socket.destroy();
  await until('everything is released', async () => await receiving(relay) === 0);
  assert.equal((await upload(relay, bundle({ [id]: { n: 1 } }))).status, 200);
  await until('also by the stored one', async () => await receiving(relay) === 0);
  assert.deepEqual(await readdir(join(relay.at, 'bundles/.incoming')), []);
});

test('an address with many costly uploads does not delay others', async t => {
  const relay = await Relay.start(t, { auth: { mode: '"open"' } });
  // Slow to verify, and then not valid.
  const entries = { [entry(documentId(255))]: Buffer.from('no document') };
  for (const n of [2, 3, 4]) entries[entry(documentId(n))] = EMPTY_CHANGES;
  const costly = bundle({ [id]: { n: 1 } }, {}, entries);
  const uploads = Array.from({ length: 6 }, () => begin(t, relay, '203.0.113.1'));
  const whole = ({ send, socket }, bytes) => { send(bytes); socket.write('0\r\n\r\n'); };
  for (const upload of uploads) whole(upload, costly);
  await until('they are received', async () => await receiving(relay) >= uploads.length * MIB);
  const other = begin(t, relay, '203.0.113.2');
  whole(other, bundle({ [id]: { n: 1 } }));
  await until('the other one is stored', () => other.status(), 60);
  const left = uploads.filter(({ status }) => !status()).length;
  assert.equal(other.status(), 200);
  assert.ok(left >= uploads.length / 2, `it waited for ${uploads.length - left} of ${uploads.length}`);
});

test('running uploads leave storage.min_free on the disk', async t => {
  const at = await smallDisk(t, 96);
  if (!at) return;
  const relay = await Relay.start(t, { auth: { mode: '"open"' }, storage: { min_free: '"64MiB"' } }, at);
  const free = () => statfsSync(at).bavail * statfsSync(at).bsize / MIB;
  const [part, uploads] = [zeros(2 * MIB), []];
  for (let n = 0; n < 30; n++) uploads.push(begin(t, relay, `203.0.113.${n}`, GZIP));
  // All at the same time, so that each measures the same free space.
  for (const { send } of uploads) send(part);
  await until('some are refused', () => uploads.some(upload => upload.status() === 507));
  await until('the others are on the disk', async () => {
    const refused = uploads.filter(upload => upload.status() === 507).length;
    return await receiving(relay) === (uploads.length - refused) * 2 * MIB;
  });
  assert.ok(free() >= 64, `${free()} MiB are free`);
  for (const { socket } of uploads) socket.destroy();
  await until('it is free again', () => free() > 90);
  await until('it is known', async () => (await upload(relay, bundle({ [id]: { n: 1 } }))).status === 200);
});

test('a failed upload uses no quota', async t => {
  const relay = await Relay.start(t, { auth: { mode: '"open"' }, limits: { stored_bytes: '"100kB"', new_documents: '"3/h"' } });
  const data = crypto.getRandomValues(new Uint8Array(60_000));
  const body = bundle({ [id]: { data } });
  const send = body => fetch(`${relay.url}/api/bundles`, { method: 'POST', body,
    headers: { 'x-forwarded-for': '203.0.113.1', 'content-type': 'application/octet-stream' } });
  for (let n = 0; n < 3; n++) assert.equal((await send(data)).status, 400, 'no bundle');
  for (let n = 0; n < 3; n++) {
    const left = begin(t, relay, '203.0.113.1');
    left.send(data);
    await until('it is being received', async () => await receiving(relay) > 0);
    left.socket.destroy();
    await until('it was abandoned', async () => await receiving(relay) === 0);
  }
  // The store fails: a folder is where its file should be.
  const inTheWay = join(relay.at, 'bundles', `${id}.tonk`);
  await mkdir(inTheWay);
  for (let n = 0; n < 3; n++) assert.equal((await send(body)).status, 503, 'the store is away');
  await rmdir(inTheWay);
  assert.equal((await send(body)).status, 200);
  // The last bytes of a quota allow a part that is larger.
  const over = await until('the quota is used up', async () => {
    const answer = await send(body);
    return answer.status === 429 && answer;
  });
  assert.match((await over.json()).error, /limits\.stored_bytes/);
});
