// Every row of the HTTP contract, as a client sees it.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFile, readdir, rename, writeFile } from 'node:fs/promises';
import http from 'node:http';
import net from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { gunzipSync, gzipSync } from 'node:zlib';
import { strToU8, unzipSync, zipSync } from 'fflate';
import { joined, sendTo, sync } from './raw.mjs';
import { Relay, atEnd, bundle, documentId, entry, folder, until } from './relay.mjs';

const id = documentId(1);
const contents = bundle({ [id]: { root: true }, [documentId(2)]: { other: true } });

async function withBundle(t, config = {}) {
  const at = await folder(t);
  await writeFile(join(at, 'app.tonk'), contents);
  await writeFile(join(at, 'core.wasm'), 'wasm!');
  const relay = await Relay.start(t, {
    bundle: { path: `"${at}/app.tonk"`, wasm: `"${at}/core.wasm"`, ...config.bundle }, ...config.more,
  }, at);
  return relay;
}

const upload = (relay, body, headers = {}) => fetch(`${relay.url}/api/bundles`, {
  method: 'POST', body, headers: { 'content-type': 'application/octet-stream', ...headers }, duplex: 'half',
});
const bytes = async response => new Uint8Array(await response.arrayBuffer());

test('GET / answers with CORS headers', async t => {
  const relay = await withBundle(t);
  const response = await fetch(relay.url, { headers: { origin: 'https://app.example.org' } });
  assert.equal(await response.text(), '👍 Tonk relay server is running');
  assert.equal(response.headers.get('vary'), 'Origin');
  assert.equal(response.headers.get('access-control-allow-credentials'), 'true');
  assert.equal(response.headers.get('access-control-allow-origin'), 'https://app.example.org');
  const plain = await fetch(relay.url);
  assert.equal(plain.headers.get('access-control-allow-origin'), null);
  assert.equal(plain.headers.get('vary'), 'Origin');
  const preflight = await fetch(`${relay.url}/api/bundles`, {
    method: 'OPTIONS', headers: { origin: 'https://x', 'access-control-request-method': 'POST' },
  });
  assert.equal(preflight.status, 204);
  assert.equal(preflight.headers.get('access-control-allow-methods'), 'GET,POST,PUT,DELETE,OPTIONS');
  assert.equal(preflight.headers.get('access-control-allow-headers'), 'Content-Type,Authorization,If-None-Match,Range');
  assert.equal(preflight.headers.get('access-control-max-age'), '7200');
  const exposed = response.headers.get('access-control-expose-headers').split(',').map(name => name.trim());
  assert.deepEqual(exposed.sort(), ['content-disposition', 'content-range', 'etag', 'retry-after']);
});

test('an origin that is not allowed gets no CORS headers', async t => {
  const relay = await withBundle(t, { more: { http: { allowed_origins: '["https://app.example.org", "https://*.example.com"]' } } });
  const allowed = async origin =>
    (await fetch(relay.url, { headers: { origin } })).headers.get('access-control-allow-origin');
  assert.equal(await allowed('https://evil.example.org'), null);
  assert.equal(await allowed('https://example.com'), null);
  assert.equal(await allowed('https://a.b.example.com'), 'https://a.b.example.com');
});

test('the manifest is served with its ETag', async t => {
  const relay = await withBundle(t);
  const response = await fetch(`${relay.url}/.manifest.tonk`);
  assert.equal(response.headers.get('content-type'), 'application/zip');
  assert.equal(response.headers.get('content-disposition'), 'attachment; filename="manifest.tonk"');
  const body = await bytes(response);
  assert.equal(Number(response.headers.get('content-length')), body.length);
  assert.deepEqual(Object.keys(unzipSync(body)), ['manifest.json', entry(id)]);
  const etag = response.headers.get('etag');
  const again = await fetch(`${relay.url}/.manifest.tonk`, { headers: { 'if-none-match': `"x", ${etag}` } });
  assert.equal(again.status, 304);
  const head = await fetch(`${relay.url}/.manifest.tonk`, { method: 'HEAD' });
  assert.equal(Number(head.headers.get('content-length')), body.length);
});

test('the WASM file and the blank bundle are served', async t => {
  const relay = await withBundle(t);
  const ask = (path, headers = {}) => fetch(relay.url + path, { headers });
  const wasm = await ask('/tonk_core_bg.wasm');
  assert.equal(wasm.headers.get('content-type'), 'application/wasm');
  assert.equal(wasm.headers.get('cache-control'), 'public, no-cache');
  assert.equal(await wasm.text(), 'wasm!');
  const blank = await ask('/api/blank-tonk');
  assert.equal(blank.headers.get('content-type'), 'application/octet-stream');
  assert.equal(blank.headers.get('content-disposition'), 'attachment; filename="latergram.tonk"');
  assert.equal(blank.headers.get('cache-control'), 'public, no-cache');
  assert.deepEqual(await bytes(blank), contents, 'the served bundle, where no other is named');
  for (const path of ['/tonk_core_bg.wasm', '/api/blank-tonk']) {
    const head = await fetch(relay.url + path, { method: 'HEAD' });
    const etag = head.headers.get('etag');
    const known = await ask(path, { 'if-none-match': etag });
    assert.deepEqual([known.status, known.headers.get('etag')], [304, etag], path);
    const part = await ask(path, { range: 'bytes=1-2' });
    assert.equal(part.status, 206, path);
    assert.equal(part.headers.get('content-range'), `bytes 1-2/${head.headers.get('content-length')}`);
    const versioned = await ask(`${path}?v=1.2`);
    assert.equal(versioned.headers.get('cache-control'), 'public, max-age=31536000, immutable');
    assert.equal((await ask(`${path}?v=`)).headers.get('cache-control'), 'public, no-cache');
  }
});

test('a configured file that changes is served at once, also to clients that have the former one', async t => {
  const relay = await withBundle(t);
  const [url, file] = [`${relay.url}/tonk_core_bg.wasm`, join(relay.at, 'core.wasm')];
  const former = (await fetch(url)).headers.get('etag');
  const text = 'wasm! '.repeat(10_000);
  await writeFile(`${file}.new`, text);
  await rename(`${file}.new`, file);
  const now = await fetch(url, { headers: { 'if-none-match': former } });
  assert.equal(now.status, 200);
  assert.equal(await now.text(), text);
  const raw = headers => new Promise((resolve, reject) => http.get(url, { headers }, resolve).on('error', reject));
  const gzipped = await raw({ 'accept-encoding': 'gzip' });
  assert.equal(gzipped.headers['content-encoding'], 'gzip');
  assert.equal(gzipped.headers.vary, 'Origin, Accept-Encoding');
  const body = Buffer.concat(await gzipped.toArray());
  assert.equal(String(gunzipSync(body)), text);
  assert.equal(Number(gzipped.headers['content-length']), body.length);
  const plain = await raw({});
  assert.equal(plain.headers['content-encoding'], undefined);
  assert.equal(plain.headers.vary, 'Origin, Accept-Encoding');
  assert.notEqual(plain.headers.etag, gzipped.headers.etag, 'each form has its own');
  assert.equal(String(Buffer.concat(await plain.toArray())), text);
  const part = await raw({ 'accept-encoding': 'gzip', range: 'bytes=0-4' });
  assert.equal(String(Buffer.concat(await part.toArray())), 'wasm!', 'a part is of the file as it is');
});

test('a relay without a bundle reports that', async t => {
  const relay = await Relay.start(t);
  for (const [path, status, error] of [
    ['/.manifest.tonk', 503, 'No bundle is served'],
    ['/tonk_core_bg.wasm', 404, 'WASM file not found'],
    ['/api/blank-tonk', 404, 'Blank tonk template not found'],
    [`/api/bundles/${id}`, 404, 'Bundle not found'],
    [`/api/bundles/${id}/manifest`, 404, 'Bundle not found'],
    ['/no/such/page', 404, 'Not found'],
  ]) {
    const response = await fetch(relay.url + path);
    assert.equal(response.status, status, path);
    assert.equal(response.headers.get('content-type'), 'application/json', path);
    assert.deepEqual(await response.json(), { error }, path);
  }
  const badId = await fetch(`${relay.url}/api/bundles/..%2f..%2fetc`);
  assert.equal(badId.status, 400);
  assert.match((await badId.json()).error, /is not a document id/);
  const method = await fetch(relay.url, { method: 'DELETE' });
  assert.equal(method.status, 405);
  assert.match(method.headers.get('allow'), /GET/);
  assert.deepEqual(await method.json(), { error: 'Method Not Allowed' });
});

test('bundles can be uploaded and downloaded', async t => {
  const relay = await Relay.start(t);
  const stored = await upload(relay, contents);
  const answer = await stored.json();
  assert.deepEqual([answer.id, answer.message], [id, 'Bundle uploaded successfully']);
  const whole = await fetch(`${relay.url}/api/bundles/${id}`);
  assert.equal(whole.headers.get('content-type'), 'application/octet-stream');
  assert.equal(whole.headers.get('content-disposition'), `attachment; filename="${id}.tonk"`);
  assert.equal(whole.headers.get('cache-control'), 'public, max-age=3600');
  assert.deepEqual(await bytes(whole), contents);
  const etag = whole.headers.get('etag');
  const ask = headers => fetch(`${relay.url}/api/bundles/${id}`, { headers });
  assert.equal((await ask({ 'if-none-match': etag })).status, 304);
  const part = await ask({ range: 'bytes=2-5' });
  assert.equal(part.status, 206);
  assert.equal(part.headers.get('content-range'), `bytes 2-5/${contents.length}`);
  assert.deepEqual(await bytes(part), contents.slice(2, 6));
  assert.equal((await ask({ range: 'bytes=2-5', 'if-range': '"other"' })).status, 200);
  assert.equal((await ask({ range: 'bytes=0-1,4-5' })).status, 200);
  assert.equal((await ask({ range: 'bytes=-1000000' })).status, 200, 'more than there is: the whole');
  const beyond = await ask({ range: `bytes=${contents.length}-` });
  assert.equal(beyond.status, 416);
  assert.equal(beyond.headers.get('content-range'), `bytes */${contents.length}`);
  const slim = await fetch(`${relay.url}/api/bundles/${id}/manifest`);
  assert.equal(slim.headers.get('content-type'), 'application/zip');
  assert.deepEqual(Object.keys(unzipSync(await bytes(slim))), ['manifest.json', entry(id)]);
  for (const coding of ['gzip', 'GZIP', 'x-gzip']) {
    assert.equal((await upload(relay, gzipSync(contents), { 'content-encoding': coding })).status, 200, coding);
  }
  assert.deepEqual(await bytes(await ask({})), contents);
  assert.notEqual((await ask({})).headers.get('etag'), etag, 'another upload, another ETag');
});

test('invalid uploads are refused with a reason and leave no files', async t => {
  const relay = await Relay.start(t, {
    bundles: { max_upload: '"100KiB"', max_inflated: '"1MiB"' },
    http: { body_idle_timeout: '"300ms"', body_min_rate: '"1KiB"' },
  });
  const manifest = (extra = {}) => strToU8(JSON.stringify({ manifestVersion: 1, rootId: id, ...extra }));
  const zeros = new Uint8Array(4 << 20);
  const twice = zipSync({ 'manifest.json': manifest(), 'one-name': strToU8('1'), 'two-name': strToU8('2') }, { level: 0 });
  for (let at = 0; at + 8 < twice.length; at++) {
    if (Buffer.from(twice.slice(at, at + 8)).toString() === 'two-name') twice.set(strToU8('one-name'), at);
  }
  const notText = zipSync({ 'manifest.json': manifest(), 'abc-name': strToU8('1') }, { level: 0 });
  for (let at = 0; at + 8 < notText.length; at++) {
    if (Buffer.from(notText.slice(at, at + 8)).toString() === 'abc-name') notText.set([0xff, 0xfe], at);
  }
  for (const [what, body, status, error] of [
    ['empty', '', 400, /^Invalid bundle data: the body is empty$/],
    ['no ZIP', 'hello', 400, /^Invalid bundle: not a ZIP archive/],
    ['no manifest', zipSync({ 'a.txt': strToU8('x') }), 400, /^Invalid bundle: manifest\.json not found$/],
    ['bad JSON', zipSync({ 'manifest.json': strToU8('{') }), 400, /^Invalid bundle: manifest\.json is not valid/],
    ['no rootId', zipSync({ 'manifest.json': strToU8('{}') }), 400, /^Invalid bundle: rootId not found in manifest$/],
    ['a bad rootId', zipSync({ 'manifest.json': manifest({ rootId: '../../x' }) }), 400, /is not a document id/],
    ['version 2', zipSync({ 'manifest.json': manifest({ manifestVersion: 2 }) }), 400, /manifestVersion 2 is not supported/],
    ['an absolute path', zipSync({ 'manifest.json': manifest(), '/etc/passwd': strToU8('x') }), 400, /absolute/],
    ['a path upwards', zipSync({ 'manifest.json': manifest(), 'storage/../../x': strToU8('x') }), 400, /"\.\."/],
    ['a name twice', twice, 400, /twice/],
    ['a name that is no text', notText, 400, /not UTF-8/],
    ['a document id that is none', zipSync({ 'manifest.json': manifest(), 'storage/AB/CDEFG/snapshot/x': strToU8('x') }), 400, /do not form a document id/],
    ['a kind that is none', zipSync({ 'manifest.json': manifest(), [entry(id).replace('snapshot', 'other')]: strToU8('x') }), 400, /expected a snapshot/],
    ['a broken document', zipSync({ 'manifest.json': manifest(), [entry(id)]: strToU8('x') }), 400, /is not an automerge document/],
    ['a bomb', zipSync({ 'manifest.json': manifest(), [entry(id)]: zeros }, { level: 9 }), 400, /unpacks to more than 1048576 bytes/],
    ['too large', crypto.getRandomValues(new Uint8Array(60_000)).length && new Uint8Array(200_000), 413, /larger than 102400 bytes/],
  ]) {
    const response = await upload(relay, body);
    assert.equal(response.status, status, what);
    assert.match((await response.json()).error, error, what);
  }
  const type = await upload(relay, contents, { 'content-type': 'text/plain' });
  assert.deepEqual([type.status, await type.json()], [400, { error: 'Invalid bundle data: expected the Content-Type application/octet-stream, found text/plain' }]);
  const bomb = await upload(relay, gzipSync(zeros), { 'content-encoding': 'gzip' });
  assert.equal(bomb.status, 413, 'gzip bodies count unpacked');
  const gzipped = gzipSync(contents);
  for (const [what, body] of [['not gzip', contents], ['cut off', gzipped.subarray(0, -1)],
    ['garbage behind it', Buffer.concat([gzipped, Buffer.from('garbage')])]]) {
    const answer = await upload(relay, body, { 'content-encoding': 'gzip' });
    assert.equal(answer.status, 400, what);
    assert.match((await answer.json()).error, /not valid gzip/, what);
  }
  const brotli = await upload(relay, contents, { 'content-encoding': 'br' });
  assert.equal(brotli.status, 415);
  assert.equal(brotli.headers.get('accept-encoding'), 'gzip');

  // A client that sends a part and then stops.
  const slow = await new Promise((resolve, reject) => {
    const request = http.request(`${relay.url}/api/bundles`, {
      method: 'POST', headers: { 'content-type': 'application/octet-stream', 'content-length': 5000 },
    }, resolve);
    request.on('error', reject);
    request.write(contents.slice(0, 100));
  });
  assert.equal(slow.statusCode, 408);
  slow.destroy();
  // A client that sends a byte from time to time.
  const trickle = await new Promise((resolve, reject) => {
    const request = http.request(`${relay.url}/api/bundles`, {
      method: 'POST', headers: { 'content-type': 'application/octet-stream', 'content-length': 5000 },
    }, answer => { clearInterval(dripping); resolve(answer); });
    request.on('error', reject);
    const dripping = setInterval(() => request.write('x'), 100);
    atEnd(t, () => clearInterval(dripping));
  });
  assert.equal(trickle.statusCode, 408);
  trickle.destroy();
  // A client that disconnects.
  const cut = net.connect(relay.port, '127.0.0.1');
  cut.write('POST /api/bundles HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: 5000\r\n\r\nhalf');
  cut.end();
  await until('nothing is left', async () => {
    const left = await readdir(join(relay.at, 'bundles'), { recursive: true });
    return left.length === 1 && left[0] === '.incoming';
  });
  assert.equal((await fetch(`${relay.url}/api/bundles/${id}`)).status, 404);
});

test('an archive of very many entries is refused before it uses memory', async t => {
  const relay = await Relay.start(t);
  const entries = 400_000;
  // Written by hand: a directory of entries without content, and its end (APPNOTE.TXT 4.3.12,
  // 4.3.14 and 4.3.15).
  const directory = Buffer.alloc(entries * 47);
  for (let n = 0; n < entries; n++) {
    directory.writeUInt32LE(0x02014b50, n * 47);
    directory.writeUInt16LE(1, n * 47 + 28);
    directory.write('x', n * 47 + 46);
  }
  const end = Buffer.alloc(56 + 20 + 22);
  end.writeUInt32LE(0x06064b50, 0);
  end.writeBigUInt64LE(44n, 4);
  end.writeUInt16LE(45, 12);
  end.writeUInt16LE(45, 14);
  for (const at of [24, 32]) end.writeBigUInt64LE(BigInt(entries), at);
  end.writeBigUInt64LE(BigInt(directory.length), 40);
  end.writeUInt32LE(0x07064b50, 56);
  end.writeBigUInt64LE(BigInt(directory.length), 64);
  end.writeUInt32LE(1, 72);
  end.writeUInt32LE(0x06054b50, 76);
  end.fill(0xff, 76 + 8, 76 + 20);
  const memory = async () => Number(/VmHWM:\s+(\d+)/.exec(await readFile(`/proc/${relay.child.pid}/status`, 'utf8'))[1]) >> 10;
  const before = await memory();
  const answer = await upload(relay, Buffer.concat([directory, end]));
  assert.equal(answer.status, 400);
  assert.match((await answer.json()).error, /more than 20000 entries/);
  assert.ok(await memory() - before < 60, `${before} to ${await memory()} MiB`);
});

test('metrics are served for Prometheus and in the form of the TypeScript relay', async t => {
  const relay = await Relay.start(t);
  const text = await fetch(`${relay.url}/metrics`);
  assert.match(text.headers.get('content-type'), /^text\/plain; version=0\.0\.4/);
  assert.match(await text.text(), /# TYPE tonk_relay_connections gauge\ntonk_relay_connections 0\n/);
  const json = await (await fetch(`${relay.url}/metrics`, { headers: { accept: 'application/json' } })).json();
  assert.ok(Math.abs(json.timestamp - Date.now()) < 5000);
  assert.ok(json.memory.rss > 1 << 20);
  assert.deepEqual([json.connections, json.process.pid], [0, relay.child.pid]);
  assert.equal(typeof json.uptime, 'number');
  assert.equal(await relay.metric('tonk_relay_http_requests_total{route="/metrics",status="200"}'), 2);
});

test('/metrics can be removed from the public port, and the admin listener serves it', async t => {
  const relay = await Relay.start(t, { http: { metrics: 'false' } });
  assert.equal((await fetch(`${relay.url}/metrics`)).status, 404);
  const answer = await new Promise((resolve, reject) => {
    http.get({ socketPath: join(relay.at, 'admin.sock'), path: '/metrics' }, resolve).on('error', reject);
  });
  assert.equal(answer.statusCode, 200);
  answer.resume();
});

test('health endpoints answer', async t => {
  const relay = await Relay.start(t);
  for (const path of ['/livez', '/readyz']) {
    const response = await fetch(relay.url + path);
    assert.deepEqual([response.status, await response.text()], [200, 'ok\n']);
  }
});

test('a client that sends its request head too slowly is disconnected', async t => {
  const relay = await Relay.start(t, { http: { header_timeout: '"200ms"' } });
  const socket = net.connect(relay.port, '127.0.0.1');
  atEnd(t, () => socket.destroy());
  socket.write('GET / HTTP/1.1\r\nHost');
  socket.resume();
  await new Promise(resolve => socket.on('close', resolve));
});

test('a stalled download is ended and releases its permit, and a WebSocket has its own limits', async t => {
  const relay = await Relay.start(t, { http: { response_idle_timeout: '"1s"' } });
  const body = bundle({ [id]: { n: 1 } }, {}, { padding: randomBytes(4 << 20) });
  assert.equal((await upload(relay, body)).status, 200);
  const [reader, writer] = [await joined(t, relay, 'reader'), await joined(t, relay, 'writer')];
  for (const socket of [reader, writer]) {
    sync(socket, id);
    await until('the document', () => socket.heard.some(message => message.type === 'sync'));
  }
  reader.pause();
  sendTo(writer, { type: 'ephemeral', documentId: id, senderId: 'writer', targetId: writer.relay, count: 1, sessionId: 's',
    data: randomBytes(4 << 20) });
  await until('it is sent to the reader', async () => await relay.metric('tonk_relay_ephemera_forwarded_total') === 1);
  const open = () => relay.metric('tonk_relay_http_connections{listener="public"}');
  const stalled = Array.from({ length: 8 }, () => {
    const socket = net.connect(relay.port, '127.0.0.1');
    atEnd(t, () => socket.destroy());
    socket.pause();
    socket.on('error', () => {});
    socket.write(`GET /api/bundles/${id} HTTP/1.1\r\nHost: localhost\r\n\r\n`);
    return socket;
  });
  await until('they are cut off', async () => await relay.metric('tonk_relay_refused_total{reason="response_idle"}') === 8);
  assert.ok(await open() < stalled.length, 'their permits are free');
  reader.resume();
  await until('the session is open', () => reader.heard.some(message => message.type === 'ephemeral'));
  const whole = await fetch(`${relay.url}/api/bundles/${id}`);
  assert.equal((await bytes(whole)).length, body.length, 'the reader has it');
});

test('a request must name exactly one host', async t => {
  const relay = await Relay.start(t);
  const status = head => new Promise((resolve, reject) => {
    const socket = net.connect(relay.port, '127.0.0.1');
    socket.on('error', reject);
    socket.on('data', data => { socket.destroy(); resolve(Number(/^HTTP\/1\.[01] (\d+)/.exec(data)[1])); });
    socket.write(`GET /livez ${head}\r\n\r\n`);
  });
  assert.equal(await status('HTTP/1.1\r\nHost: localhost'), 200);
  assert.equal(await status('HTTP/1.1\r\nHost:'), 200, 'a URL without an authority');
  assert.equal(await status('HTTP/1.0'), 200, 'older than the header');
  for (const head of ['HTTP/1.1', 'HTTP/1.1\r\nHost: localhost\r\nHost: localhost', 'HTTP/1.0\r\nHost: a\r\nHost: b',
    'HTTP/1.1\r\nHost: a b', 'HTTP/1.1\r\nHost: user@localhost', 'HTTP/1.1\r\nHost: a/b']) {
    assert.equal(await status(head), 400, head);
  }
});
