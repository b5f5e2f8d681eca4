// Sign-in: who is accepted, with which rights, and when these end.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHmac, generateKeyPairSync, randomBytes, sign } from 'node:crypto';
import { mkdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { test } from 'node:test';
import { join as path } from 'node:path';
import * as Automerge from '@automerge/automerge';
import { WebSocketClientAdapter } from '@automerge/automerge-repo-network-websocket';
import { Repo } from '@automerge/automerge-repo';
import { BINARY, Relay, atEnd, bundle, close, documentId, folder, saved, share, until } from './relay.mjs';
import { syncMessageWith, connect, join, joined, sendTo, sync } from './raw.mjs';

/** A relay that requires tokens, and `token(name, ...scopes)` to create them. */
async function signedIn(t, config = {}) {
  const at = await folder(t);
  const tokens = path(at, 'tokens');
  await writeFile(tokens, '');
  await writeFile(path(at, 'only.toml'), `[auth]\ntokens = "${tokens}"\n[storage]\npath = "${at}/documents"\n`);
  const command = (...words) => execFileSync(BINARY, ['token', ...words, '--config', path(at, 'only.toml')],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  const token = (name, scopes, ...more) => command('add', name, '--scope', scopes, ...more).trim();
  const first = token('first', 'sync:write,upload,download,admin');
  const relay = await Relay.start(t, { ...config, auth: { mode: '"token"', tokens: `"${tokens}"`, ...config.auth } }, at);
  relay.headers = { authorization: `Bearer ${first}` };
  return { relay, token, command, first, tokens };
}

test('the list of tokens shows a use at once, and says so when it is empty', async t => {
  const { relay, command, first } = await signedIn(t);
  const config = path(relay.at, 'tonk-relay.toml');
  const list = () => spawnSync(BINARY, ['token', 'list', '--config', config], { encoding: 'utf8' });
  assert.match(list().stdout, /first .* never used\n$/);
  const headers = { authorization: `Bearer ${first}` };
  assert.equal((await fetch(`${relay.url}/metrics`, { headers })).status, 200);
  assert.match(list().stdout, /first .* used 20\d\d-\S+Z\n$/);
  await relay.stop();
  assert.match(list().stdout, /first .* used 20\d\d-\S+Z\n$/, 'without the relay, too');
  command('remove', 'first');
  assert.deepEqual([list().stdout, list().stderr], ['', 'there are no tokens; `tonk-relay token add NAME --scope SCOPE` makes one\n']);
});

const url = (relay, token) => `${relay.ws}/?token=${token}`;
const reload = relay => relay.command('reload');

test('without a mode local clients are served, and clients forwarded from elsewhere are not', async t => {
  const relay = await Relay.start(t);
  const local = await joined(t, relay, 'local');
  await joined(t, relay, 'proxied', { headers: { 'x-forwarded-for': '127.0.0.1' } });
  const session = await (await fetch(`${relay.url}/api/session`)).json();
  assert.deepEqual([session.principal, session.mode, session.rights.write], ['anybody', '', 'all']);
  const remote = { 'x-forwarded-for': '203.0.113.9' };
  for (const headers of [remote, { forwarded: 'for=203.0.113.9' }, { 'x-real-ip': '203.0.113.9' }]) {
    const { code, reason } = await (await connect(t, relay, { headers })).closed;
    assert.equal(code, 4401);
    assert.match(reason, /auth\.mode is not set/);
    const page = await fetch(`${relay.url}/metrics`, { headers });
    assert.equal(page.status, 401);
    assert.match((await page.json()).error, /auth\.mode is not set/);
  }
  assert.equal((await fetch(`${relay.url}/livez`, { headers: remote })).status, 200);
  assert.equal(local.readyState, 1);
  // A foreign page in a browser of this machine, also under a name that resolves to it.
  await joined(t, relay, 'page', { headers: { origin: 'http://localhost:3000' } });
  for (const headers of [{ origin: 'https://evil.example' }, { origin: 'null' }, { host: 'evil.example:8081' }]) {
    assert.equal((await (await connect(t, relay, { headers })).closed).code, 4401);
  }
});

test('a token is accepted in the URL, a header or a subprotocol, and is never logged', async t => {
  const { relay, first } = await signedIn(t, { log: { level: '"trace"' } });
  const stock = relay.client(t, { url: url(relay, first) });
  const handle = await share(stock, { title: 'signed in' });
  const headers = { authorization: `Bearer ${first}` };
  const plain = await joined(t, relay, 'header', { headers });
  const browser = await joined(t, relay, 'browser', { protocols: ['tonk-relay', `bearer.${first}`] });
  assert.equal(browser.protocol, 'tonk-relay');
  for (const socket of [plain, browser]) {
    sync(socket, handle.documentId);
    await until('the document', () => socket.heard.some(message => message.type === 'sync'));
  }
  for (const [options, why] of [[{}, /sign-in is required/], [{ path: '/?token=tonk_wrong' }, /unknown or revoked token/],
    [{ headers: { authorization: 'Bearer x' } }, /unknown or revoked token/]]) {
    const socket = await connect(t, relay, options);
    const { code, reason } = await socket.closed;
    assert.equal(code, 4401);
    assert.match(reason, why);
    assert.equal(socket.heard[0].type, 'error');
  }
  const page = await fetch(`${relay.url}/metrics?token=${first}`);
  assert.equal(page.status, 200);
  assert.match(await page.text(), /tonk_relay_sign_ins_total\{outcome="unknown_token"\} 2/);
  await close(stock);
  await relay.stop();
  assert.ok(!relay.log.includes(first), 'the token is in the log');
  assert.ok(!relay.log.includes(first.slice(5, 30)), 'a part of the token is in the log');
});

test('a token in the URL is refused if that is switched off', async t => {
  const { relay, first } = await signedIn(t, { auth: { query_token: false } });
  assert.equal((await (await connect(t, relay, { path: `/?token=${first}` })).closed).code, 4401);
  await joined(t, relay, 'header', { headers: { authorization: `Bearer ${first}` } });
});

test('each route requires its scope', async t => {
  const { relay, token } = await signedIn(t);
  const scoped = Object.fromEntries(['sync:read', 'upload', 'download', 'admin'].map(scope => [scope, token(scope, scope)]));
  const status = async (route, scope, options = {}) => {
    const headers = scope ? { authorization: `Bearer ${scoped[scope]}` } : {};
    const answer = await fetch(relay.url + route, { ...options, headers: { ...headers, ...options.headers } });
    await answer.arrayBuffer();
    return [answer.status, answer.headers.get('www-authenticate')];
  };
  reload(relay);
  for (const route of ['/', '/livez', '/readyz', '/tonk_core_bg.wasm']) {
    assert.notEqual((await status(route))[0], 401, route);
  }
  const id = documentId(9);
  const guarded = { '/.manifest.tonk': 'download', '/api/blank-tonk': 'download', [`/api/bundles/${id}`]: 'download',
    [`/api/bundles/${id}/manifest`]: 'download', '/metrics': 'admin' };
  for (const [route, need] of Object.entries(guarded)) {
    assert.deepEqual(await status(route), [401, 'Bearer'], route);
    for (const scope of Object.keys(scoped)) {
      const [found] = await status(route, scope);
      if (scope === need) assert.ok(found !== 401 && found !== 403, `${route} with ${scope}: ${found}`);
      else assert.equal(found, 403, `${route} with ${scope}`);
    }
  }
  const body = { method: 'POST', body: 'x', headers: { 'content-type': 'application/octet-stream' } };
  assert.equal((await status('/api/bundles', undefined, body))[0], 401);
  assert.equal((await status('/api/bundles', 'download', body))[0], 403);
  assert.equal((await status('/api/bundles', 'upload', body))[0], 400);
  for (const scope of ['upload', 'download', 'admin']) {
    const { code, reason } = await (await connect(t, relay, { path: `/?token=${scoped[scope]}` })).closed;
    assert.equal(code, 4403);
    assert.match(reason, /no scope for sync/);
  }
});

test('a client without a token has the anonymous scopes', async t => {
  const { relay } = await signedIn(t, { auth: { anonymous: '["download", "sync:read"]' } });
  const answer = await fetch(`${relay.url}/api/blank-tonk`);
  assert.equal(answer.status, 404);
  await joined(t, relay, 'reader');
  assert.equal((await fetch(`${relay.url}/metrics`)).status, 401 + 2, 'not one of the scopes');
});

test('a client can ask who it is, what it may do, until when, and for the names of the relay', async t => {
  const { relay, token, first } = await signedIn(t, { auth: { readonly_presence: false } });
  const [read, written] = [documentId(1), documentId(2)];
  const narrow = token('narrow', `sync:read:${read},sync:write:${written},download`, '--expires', '1h');
  const poor = token('poor', 'admin');
  reload(relay);
  const session = (secret, more = {}) => fetch(`${relay.url}/api/session`,
    { headers: { ...secret && { authorization: `Bearer ${secret}` }, ...more } });
  const answer = await session(narrow, { origin: 'https://app.example.org' });
  assert.equal(answer.headers.get('cache-control'), 'no-store');
  assert.equal(answer.headers.get('access-control-allow-origin'), 'https://app.example.org');
  const { expires, expiresIn, peerId, storageId, ...rest } = await answer.json();
  assert.deepEqual(rest, { principal: 'token:narrow', mode: 'token',
    rights: { read: [read, written], write: [written], presence: [written], upload: false, download: true, admin: false } });
  assert.ok(expiresIn > 3500 && expiresIn <= 3600, `${expiresIn} s`);
  assert.ok(Math.abs(Date.parse(expires) - Date.now() - 1000 * expiresIn) < 10_000, expires);
  const { repo } = relay.client(t, { url: url(relay, first) });
  await until('the handshake', () => Object.keys(repo.peerMetadataByPeerId).length > 0);
  assert.deepEqual(Object.entries(repo.peerMetadataByPeerId).map(([id, peer]) => [id, peer.storageId]), [[peerId, storageId]]);

  const all = await (await fetch(`${relay.url}/api/session?token=${first}`)).json();
  assert.deepEqual([all.rights.read, all.rights.write, all.rights.presence, all.expires, all.expiresIn],
    ['all', 'all', 'all', null, null]);
  const { rights } = await (await session(poor)).json();
  assert.deepEqual([rights.read, rights.write, rights.admin], [[], [], true], 'no scope is needed to ask');
  for (const [secret, error] of [['tonk_wrong', /unknown or revoked token/], [undefined, /sign-in is required/]]) {
    const refused = await session(secret);
    assert.deepEqual([refused.status, refused.headers.get('www-authenticate')], [401, 'Bearer']);
    assert.match((await refused.json()).error, error);
  }
});

test('an uploaded bundle may contain only documents that its token may write', async t => {
  const { relay, token, first } = await signedIn(t);
  const [own, other] = [documentId(1), documentId(2)];
  const narrow = token('narrow', `upload,download,sync:write:${own}`);
  const send = (secret, documents) => fetch(`${relay.url}/api/bundles`, { method: 'POST', body: bundle(documents),
    headers: { 'content-type': 'application/octet-stream', authorization: `Bearer ${secret}` } });
  reload(relay);
  const refused = await send(narrow, { [own]: { a: 1 }, [other]: { b: 1 } });
  assert.equal(refused.status, 403);
  assert.match((await refused.json()).error, new RegExp(other));
  const headers = { authorization: `Bearer ${first}` };
  assert.equal((await fetch(`${relay.url}/api/bundles/${own}`, { headers })).status, 404, 'nothing of it is stored');
  assert.equal((await send(narrow, { [own]: { a: 1 } })).status, 200);
  const found = await fetch(`${relay.url}/api/bundles/${own}`, { headers });
  assert.equal(found.headers.get('cache-control'), 'private, max-age=3600');
});

for (const engine of ['native', 'samod']) {
  test(`a read-only client receives every change and cannot make any (${engine})`, async t => {
    const { relay, token, first } = await signedIn(t, { sync: { engine: `"${engine}"` } });
    const reading = token('reader', 'sync:read');
    reload(relay);
    const writer = relay.client(t, { url: url(relay, first) });
    const handle = await share(writer, { count: 0 });
    const reader = relay.client(t, { url: url(relay, reading) });
    const read = await reader.repo.find(handle.url);
    assert.equal(read.doc().count, 0);
    // A current automerge learns that it may only read and sends nothing. Others send, and are
    // refused.
    read.change(doc => { doc.graffiti = 'mine'; });
    const dropped = () => relay.metric('tonk_relay_messages_dropped_total{reason="read_only"}');
    const older = await joined(t, relay, 'older', { path: `/?token=${reading}` });
    const [theirs] = Automerge.applyChanges(Automerge.init(), Automerge.getAllChanges(handle.doc()));
    const forged = Automerge.change(theirs, doc => { doc.graffiti = 'forged'; });
    for (let n = 1; n <= 2; n++) {
      sync(older, handle.documentId, syncMessageWith(Automerge.getLastLocalChange(forged)), 'sync');
      await until('it is counted', async () => await dropped() === n);
    }
    await until('it is notified', () => older.heard.some(({ type, message }) => type === 'error' && /may only read/.test(message)));
    assert.equal(older.readyState, 1);
    for (let count = 1; count <= 5; count++) {
      handle.change(doc => { doc.count = count; });
      await until('the reader has it', () => read.doc().count === count);
    }
    read.change(doc => { doc.graffiti = 'again'; });
    // Changes of a new document that only this client has are refused, too.
    const own = reader.repo.create({ secret: true });
    const third = relay.client(t, { url: url(relay, first) });
    const seen = await third.repo.find(handle.url);
    await until('a third client has it', () => seen.doc().count === 5);
    assert.equal(seen.doc().graffiti, undefined);
    assert.equal(handle.doc().graffiti, undefined);
    await assert.rejects(third.repo.find(own.url), /unavailable/i);
    const lines = relay.log.split('\n').filter(line => line.includes('rejected changes from a read-only peer'));
    assert.equal(lines.length, 1, 'logged once');
    // Nothing is requested repeatedly.
    const messages = () => relay.metric('tonk_relay_messages_total{direction="in",type="sync"}');
    await new Promise(resolve => setTimeout(resolve, 500));
    const before = await messages();
    await new Promise(resolve => setTimeout(resolve, 1500));
    assert.ok(await messages() - before < 10, `${await messages() - before} messages while nobody edits`);
    await relay.restart();
    const after = relay.client(t, { url: url(relay, first) });
    assert.equal((await after.repo.find(handle.url)).doc().graffiti, undefined);
  });
}

test('a document that a client may not read looks like one that does not exist', async t => {
  const { relay, token, first } = await signedIn(t);
  const writer = relay.client(t, { url: url(relay, first) });
  const [open, secret] = [await share(writer, { a: 1 }), await share(writer, { b: 2 })];
  const narrow = token('narrow', `sync:write:${open.documentId}`);
  reload(relay);
  const socket = await joined(t, relay, 'narrow', { path: `/?token=${narrow}` });
  const answers = async id => {
    const from = socket.heard.length;
    sync(socket, id);
    const isIt = ({ type, documentId }) => type === 'doc-unavailable' && documentId === id;
    await until('an answer', () => socket.heard.slice(from).some(isIt));
    return socket.heard.slice(from).map(({ type, message }) => ({ type, message: message?.replace(id, 'X') }));
  };
  const forbidden = await answers(secret.documentId);
  assert.deepEqual(forbidden.map(({ type }) => type), ['error', 'doc-unavailable']);
  assert.deepEqual(await answers(documentId(77)), forbidden);
  const client = relay.client(t, { url: url(relay, narrow) });
  assert.equal((await client.repo.find(open.url)).doc().a, 1);
  await assert.rejects(client.repo.find(secret.url), /unavailable/i);
  // Its changes of that document are refused, and its presence does not arrive.
  const fake = Automerge.from({ b: 'fake' });
  sync(socket, secret.documentId, Automerge.generateSyncMessage(fake, Automerge.initSyncState())[1], 'sync');
  sendTo(socket, { type: 'ephemeral', documentId: secret.documentId, senderId: 'narrow', targetId: socket.relay, count: 1,
    sessionId: 's', data: Uint8Array.of(1) });
  await until('they are counted', async () => await relay.metric('tonk_relay_messages_dropped_total{reason="no_right"}') >= 5);
  assert.equal(await relay.metric('tonk_relay_ephemera_forwarded_total'), 0);
  assert.deepEqual(secret.doc(), { b: 2 });
});

test('presence of read-only clients is forwarded, unless the config forbids it', async t => {
  for (const allowed of [true, false]) {
    const { relay, token, first } = await signedIn(t, { auth: { readonly_presence: allowed } });
    const reading = token('reader', 'sync:read');
    reload(relay);
    const writer = relay.client(t, { url: url(relay, first) });
    const handle = await share(writer, { a: 1 });
    const heard = [];
    handle.on('ephemeral-message', ({ message }) => heard.push(message));
    const reader = relay.client(t, { url: url(relay, reading) });
    const read = await reader.repo.find(handle.url);
    read.broadcast({ cursor: 3 });
    if (allowed) {
      await until('it arrives', () => heard.length === 1);
    } else {
      await until('it is dropped',
        async () => await relay.metric('tonk_relay_messages_dropped_total{reason="readonly_presence"}') > 0);
      assert.deepEqual(heard, []);
    }
  }
});

test('revoking a token ends its sessions within a second, and no others', async t => {
  const { relay, token, command, first } = await signedIn(t);
  const phone = token('phone', 'sync:write');
  const laptop = token('laptop', 'sync:write', '--expires', '1h');
  reload(relay);
  const [kept, gone, other] = [await joined(t, relay, 'a', { path: `/?token=${first}` }),
    await joined(t, relay, 'b', { path: `/?token=${phone}` }), await joined(t, relay, 'c', { path: `/?token=${laptop}` })];
  command('remove', 'phone');
  assert.equal(gone.readyState, 1, 'not before the reload');
  const start = Date.now();
  reload(relay);
  const { code, reason } = await gone.closed;
  assert.ok(Date.now() - start < 1000, `${Date.now() - start} ms`);
  assert.equal(code, 4401);
  assert.match(reason, /unknown or revoked token/);
  assert.equal((await (await connect(t, relay, { path: `/?token=${phone}` })).closed).code, 4401);
  for (const socket of [kept, other]) {
    sync(socket, documentId(5));
    await until('it is served', () => socket.heard.some(message => message.type === 'doc-unavailable'));
  }
  const list = JSON.parse(command('list', '--json'));
  assert.deepEqual(list.map(({ name }) => name), ['first', 'laptop']);
  assert.equal(list[0].expires, null);
  assert.ok(Date.parse(list[1].expires) > Date.now());
  await relay.restart();
  await until('the last use is known', () => JSON.parse(command('list', '--json')).every(({ last_used }) => last_used));
  assert.match(command('list'), /laptop {2}sync:write {2}expires 20.*used 20/);
});

test('a revoked client that does not read cannot change anything', async t => {
  const { relay, token, command, first } = await signedIn(t, { sync: { send_queue: '"64MiB"' } });
  const gone = token('gone', 'sync:write');
  reload(relay);
  const writer = relay.client(t, { url: url(relay, first) });
  const large = await share(writer, { bytes: new Uint8Array(randomBytes(12 << 20)) });
  const small = await share(writer, { n: 0 });
  const socket = await joined(t, relay, 'stalled', { path: `/?token=${gone}` });
  sync(socket, small.documentId);
  await until('the document', () => socket.heard.some(({ type }) => type === 'sync'));
  socket._socket.pause();
  sync(socket, large.documentId);
  await until('more waits than the kernel buffers', async () => await relay.metric('tonk_relay_unsent_bytes') > 0
    || await relay.metric('tonk_relay_message_bytes_total{direction="out",type="sync"}') > 12 << 20);
  command('remove', 'gone');
  reload(relay);
  const theirs = Automerge.change(Automerge.load(Automerge.save(small.doc())), doc => { doc.n = 'theirs'; });
  sync(socket, small.documentId, syncMessageWith(Automerge.getLastLocalChange(theirs)), 'sync');
  await until('it is closed', async () => await relay.metric('tonk_relay_connections_ended_total{outcome="unknown_token"}') === 1);
  small.change(doc => { doc.more = true; });
  await saved(writer, small);
  assert.equal(small.doc().n, 0);
});

test('a token that is removed between the upgrade and the join is refused', async t => {
  const { relay, token, command } = await signedIn(t);
  const leaked = token('leaked', 'sync:write');
  reload(relay);
  const socket = await connect(t, relay, { path: `/?token=${leaked}` });
  command('remove', 'leaked');
  reload(relay);
  join(socket, 'late');
  assert.equal((await socket.closed).code, 4401);
});

/** A request with a token whose response is read as a stream. */
function ask(t, relay, token, head) {
  const socket = net.connect(relay.port, '127.0.0.1');
  atEnd(t, () => socket.destroy());
  const asked = { socket, heard: '', bytes: 0 };
  asked.ended = new Promise(resolve => socket.on('close', resolve));
  socket.on('error', () => {});
  socket.on('data', data => {
    asked.bytes += data.length;
    if (asked.heard.length < 4096) asked.heard += data.toString('latin1');
  });
  socket.write(`${head} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n`);
  return asked;
}

for (const [what, status, end] of [
  ['is removed', 401, ({ command }) => command('remove', 'app')],
  ['may not upload any more', 403, ({ tokens }) => rewrite(tokens, '"upload"', '"download"')],
  ['may not write the document any more', 403, ({ tokens }) => rewrite(tokens, '"sync:write"', '"sync:read"')],
  ['has expired', 401, ({ tokens }) => rewrite(tokens, 'name = "app"', 'name = "app"\nexpires = "2020-01-01T00:00:00Z"')],
]) {
  test(`an upload whose token ${what} meanwhile is refused, and nothing is stored`, async t => {
    const signed = await signedIn(t);
    const { relay, token, first } = signed;
    const app = token('app', 'sync:write,upload');
    reload(relay);
    const [id, body] = [documentId(1), Buffer.from(bundle({ [documentId(1)]: { a: 1 } }))];
    const upload = ask(t, relay, app, 'POST /api/bundles');
    upload.socket.write(`Content-Type: application/octet-stream\r\nContent-Length: ${body.length}\r\n\r\n`);
    upload.socket.write(body.subarray(0, 100));
    const began = Date.now();
    await until('it is being received', async () => await relay.metric('tonk_relay_bundle_receiving_bytes') > 0);
    await end(signed);
    reload(relay);
    await until('it has lasted for over a second', () => Date.now() - began > 1100);
    upload.socket.write(body.subarray(100));
    await until('an answer, with its reason', () => upload.heard.includes('{"error":'));
    assert.match(upload.heard, new RegExp(`^HTTP/1.1 ${status} `));
    const found = await fetch(`${relay.url}/api/bundles/${id}`, { headers: { authorization: `Bearer ${first}` } });
    assert.equal(found.status, 404);
  });
}

const rewrite = async (file, from, to) => {
  const lines = (await readFile(file, 'utf8')).split('[[');
  await writeFile(file, lines.map(part => part.includes('name = "app"') ? part.replace(from, to) : part).join('[['));
};

test('a download ends soon after its token is removed', async t => {
  const { relay, token, command, first } = await signedIn(t);
  const app = token('app', 'download');
  reload(relay);
  const body = bundle({ [documentId(1)]: { n: 1 } }, {}, { padding: randomBytes(12 << 20) });
  const headers = { authorization: `Bearer ${first}`, 'content-type': 'application/octet-stream' };
  assert.equal((await fetch(`${relay.url}/api/bundles`, { method: 'POST', headers, body })).status, 200);
  const [kept, gone] = [first, app].map(secret => {
    const download = ask(t, relay, secret, `GET /api/bundles/${documentId(1)}`);
    download.socket.write('Connection: close\r\n\r\n');
    return download;
  });
  const began = Date.now();
  for (const download of [kept, gone]) {
    await until('it has begun', () => download.bytes > 0);
    download.socket.pause();
  }
  command('remove', 'app');
  reload(relay);
  await until('a second is over', () => Date.now() - began > 1100);
  for (const { socket } of [kept, gone]) socket.resume();
  await Promise.all([kept.ended, gone.ended]);
  assert.ok(kept.bytes > body.length, 'the other token\'s goes on');
  assert.ok(gone.bytes < body.length, `${gone.bytes} of ${body.length} bytes came`);
});

test('when rights change the session reconnects with the new ones', async t => {
  const { relay, token, command, first, tokens } = await signedIn(t);
  const reading = token('tab', 'sync:read');
  reload(relay);
  const writer = relay.client(t, { url: url(relay, first) });
  const handle = await share(writer, { a: 1 });
  const tab = relay.client(t, { url: url(relay, reading) });
  const read = await tab.repo.find(handle.url);
  read.change(doc => { doc.late = true; });
  await new Promise(resolve => setTimeout(resolve, 500));
  assert.equal(handle.doc().late, undefined);
  const text = await readFile(tokens, 'utf8');
  await writeFile(tokens, text.replace('"sync:read"', '"sync:write"'));
  reload(relay);
  await until('its earlier changes arrive', () => handle.doc().late === true);
  assert.equal(await relay.metric('tonk_relay_connections_ended_total{outcome="rights_changed"}'), 1);
  command('list');
});

/** As in the todo example of app.md, for Node.js. */
class TokenAdapter extends WebSocketClientAdapter {
  constructor(url, getToken, retryInterval) {
    super(url, retryInterval);
    this.base = url;
    this.getToken = getToken;
  }

  connect(peerId, peerMetadata) {
    this.url = `${this.base}?token=${encodeURIComponent(this.getToken())}`;
    super.connect(peerId, peerMetadata);
  }
}

test('a token that expires closes its socket with 4401, and an adapter with a new token continues', async t => {
  const { relay, token } = await signedIn(t);
  const short = token('app', 'sync:write', '--expires', '4s');
  const next = token('app', 'sync:write');
  reload(relay);
  const bare = await joined(t, relay, 'bare', { path: `/?token=${short}` });
  let given = [short, next];
  const adapter = new TokenAdapter(relay.ws, () => given.length > 1 ? given.shift() : given[0], 200);
  const client = { repo: new Repo({ network: [adapter] }), adapter };
  relay.clients.push(client);
  const handle = await share(client, { edits: 1 });
  const { code, reason } = await bare.closed;
  assert.equal(code, 4401);
  assert.match(reason, /expired/);
  handle.change(doc => { doc.edits = 2; });
  await saved(client, handle);
  assert.equal((await (await connect(t, relay, { path: `/?token=${short}` })).closed).code, 4401);
});

test('a reload never turns sign-in off', async t => {
  const { relay, first } = await signedIn(t);
  for (const mode of ['""', '"open"']) {
    const file = path(relay.at, 'tonk-relay.toml');
    const text = await readFile(file, 'utf8');
    await writeFile(file, text.replace('mode = "token"', `mode = ${mode}`));
    assert.throws(() => reload(relay), /never turns sign-in off/);
    await writeFile(file, text);
  }
  const file = path(relay.at, 'tonk-relay.toml');
  const text = await readFile(file, 'utf8');
  await writeFile(file, text.replace('mode = "token"', 'mode = "token"\nanonymous = ["sync:read"]'));
  assert.throws(() => reload(relay), /never adds to auth\.anonymous/);
  await writeFile(file, text);
  assert.equal((await (await connect(t, relay)).closed).code, 4401);
  await joined(t, relay, 'still', { path: `/?token=${first}` });
  reload(relay);
});

test('an invalid token file keeps the former one in effect, and prevents a start', async t => {
  const { relay, first, tokens } = await signedIn(t);
  await writeFile(tokens, '[[token]]\nname = 7\n');
  assert.throws(() => reload(relay), error => /auth\.tokens: .*tokens: is not a file of tokens .*: line 2: /.test(error.stderr));
  await joined(t, relay, 'still', { path: `/?token=${first}` });
  await relay.stop();
  await assert.rejects(relay.start(), error => /"code":78/.test(error.message) && /auth\.tokens/.test(error.message));
});

test('a peer id belongs to the principal that signed in with it', async t => {
  const { relay, token } = await signedIn(t);
  const [ann, mallory] = [token('ann', 'sync:write'), token('mallory', 'sync:write')];
  reload(relay);
  const victim = await joined(t, relay, 'tab-1', { path: `/?token=${ann}` });
  const thief = await joined(t, relay, 'tab-1', { path: `/?token=${mallory}` });
  sync(victim, documentId(4));
  await until('the victim is served', () => victim.heard.some(message => message.type === 'doc-unavailable'));
  assert.equal(thief.readyState, 1);

  // Other clients cannot send messages under it, or make its next messages look old.
  const listener = await joined(t, relay, 'listener', { path: `/?token=${ann}` });
  const presence = (socket, senderId, count) => sendTo(socket, { type: 'ephemeral', documentId: documentId(5), senderId,
    targetId: socket.relay, count, sessionId: 's', data: Uint8Array.of(1) });
  const heard = () => listener.heard.filter(({ type }) => type === 'ephemeral').map(({ senderId, count }) => `${senderId} ${count}`);
  // It joins the document before the others send, because presence is not kept for later clients.
  sync(listener, documentId(5));
  await until('the listener takes part', () => listener.heard.some(message => message.type === 'doc-unavailable'));
  presence(victim, 'tab-1', 1);
  presence(victim, 'behind-tab-1', 1);
  await until('messages of the victim arrive', () => heard().length === 2);
  const squatter = await joined(t, relay, 'behind-tab-1', { path: `/?token=${mallory}` });
  presence(thief, 'tab-1', 1_000_000);
  presence(squatter, 'behind-tab-1', 1_000_000);
  const dropped = async () => await relay.metric('tonk_relay_messages_dropped_total{reason="sender"}') === 2;
  await until('messages of the others are dropped', dropped);
  presence(victim, 'tab-1', 2);
  presence(victim, 'behind-tab-1', 2);
  await until('messages of the victim arrive again', () => heard().length === 4);
  assert.deepEqual(heard(), ['tab-1 1', 'behind-tab-1 1', 'tab-1 2', 'behind-tab-1 2']);
  const again = await joined(t, relay, 'tab-1', { path: `/?token=${ann}` });
  assert.equal((await victim.closed).reason.startsWith('the same peer has connected again'), true);
  assert.equal(again.readyState, 1);
});

/** A JWT. `key` is a private key or a secret. */
function jwt(alg, key, claims, header = {}) {
  const part = object => Buffer.from(JSON.stringify(object)).toString('base64url');
  const text = `${part({ alg, typ: 'JWT', ...header })}.${part(claims)}`;
  const signature = {
    HS256: () => createHmac('sha256', key).update(text).digest(),
    EdDSA: () => sign(null, Buffer.from(text), key),
    RS256: () => sign('sha256', Buffer.from(text), key),
    ES256: () => sign('sha256', Buffer.from(text), { key, dsaEncoding: 'ieee-p1363' }),
  }[alg]();
  return `${text}.${signature.toString('base64url')}`;
}

test('JWTs of every algorithm are accepted from a JWKS and from PEM until they expire, and a reload changes keys', async t => {
  const at = await folder(t);
  const pairs = { EdDSA: generateKeyPairSync('ed25519'), ES256: generateKeyPairSync('ec', { namedCurve: 'P-256' }),
    RS256: generateKeyPairSync('rsa', { modulusLength: 2048 }) };
  const secret = randomBytes(32);
  const keys = Object.entries(pairs).map(([alg, { publicKey }]) => ({ ...publicKey.export({ format: 'jwk' }), alg, kid: alg }));
  keys.push({ kty: 'oct', k: secret.toString('base64url'), alg: 'HS256', kid: 'HS256' });
  const file = path(at, 'keys');
  await writeFile(file, JSON.stringify({ keys }));
  const relay = await Relay.start(t, { auth: { mode: '"jwt"', jwt_keys: `"${file}"`, jwt_issuer: '"https://id"',
    jwt_audience: '"relay"', anonymous: '["admin"]' } }, at);
  const now = () => Math.floor(Date.now() / 1000);
  const claims = more => ({ sub: 'ann', iss: 'https://id', aud: 'relay', exp: now() + 600, scope: 'openid sync:write', ...more });
  const make = (alg, more, header) => jwt(alg, alg === 'HS256' ? secret : pairs[alg].privateKey, claims(more), header);
  const sockets = {};
  for (const alg of ['EdDSA', 'ES256', 'RS256', 'HS256']) {
    sockets[alg] = await joined(t, relay, alg, { path: `/?token=${make(alg, {}, { kid: alg })}` });
  }
  const refused = async token => (await (await connect(t, relay, { path: `/?token=${token}` })).closed);
  assert.match((await refused(make('EdDSA', { exp: now() - 60 }))).reason, /expired/);
  assert.match((await refused(make('EdDSA', { iss: 'other' }))).reason, /issuer/);
  assert.match((await refused(make('EdDSA', { aud: 'other' }))).reason, /audience/);
  assert.equal((await refused(make('EdDSA', { scope: 'openid' }))).code, 4403);
  const stranger = generateKeyPairSync('ed25519').privateKey;
  assert.match((await refused(jwt('EdDSA', stranger, claims()))).reason, /signature/);
  // The exp has just passed, within the allowed clock skew. The socket ends when that is over.
  const brief = await joined(t, relay, 'brief', { path: `/?token=${make('ES256', { exp: now() - 7 })}` });
  assert.equal((await brief.closed).code, 4401);
  await writeFile(file, pairs.EdDSA.publicKey.export({ type: 'spki', format: 'pem' }));
  reload(relay);
  for (const alg of ['ES256', 'RS256', 'HS256']) assert.equal((await sockets[alg].closed).code, 4401);
  assert.equal(sockets.EdDSA.readyState, 1);
});

test('JWT key files are watched: a swap as Kubernetes makes it, and an invalid file', async t => {
  const at = await folder(t);
  const pairs = { one: generateKeyPairSync('ed25519'), two: generateKeyPairSync('ed25519') };
  const pem = name => pairs[name].publicKey.export({ type: 'spki', format: 'pem' });
  const [mount, file] = [path(at, 'secret'), path(at, 'secret/keys')];
  // The files are links to ..data/FILE, and ..data is a link to a folder that is replaced.
  const put = async (folder, text) => {
    await mkdir(path(mount, folder), { recursive: true });
    await writeFile(path(mount, folder, 'keys'), text);
    await symlink(folder, path(mount, '..new'));
    await rename(path(mount, '..new'), path(mount, '..data'));
  };
  await put('..1', pem('one'));
  await symlink('..data/keys', file);
  const relay = await Relay.start(t, { auth: { mode: '"jwt"', jwt_keys: `"${file}"`, anonymous: '["admin"]' } }, at);
  const token = name => jwt('EdDSA', pairs[name].privateKey, { sub: 'ann', exp: Math.floor(Date.now() / 1000) + 600, scope: 'sync:write' });
  const socket = await joined(t, relay, 'one', { path: `/?token=${token('one')}` });
  await put('..2', pem('two'));
  await rm(path(mount, '..1'), { recursive: true });
  assert.equal((await socket.closed).code, 4401);
  const next = await joined(t, relay, 'two', { path: `/?token=${token('two')}` });
  assert.match(relay.log, /auth\.jwt_keys has changed; using the new keys/);

  await put('..3', 'no keys');
  await rm(path(mount, '..2'), { recursive: true });
  await until('it is reported', () => /degraded +keys: auth\.jwt_keys: /.test(relay.command('status')));
  assert.equal(next.readyState, 1, 'the previous keys stay');
  await put('..4', pem('two'));
  await until('all is well', () => !/degraded/.test(relay.command('status')));
  assert.equal(next.readyState, 1);
  assert.doesNotMatch(relay.log, /notify/);
});
