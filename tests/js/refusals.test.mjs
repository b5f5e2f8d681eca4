// Refusals: the client is told why and keeps working, and a malformed message closes only its
// socket.
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import net from 'node:net';
import * as Automerge from '@automerge/automerge';
import { cbor } from '@automerge/automerge-repo';
import WebSocket from 'ws';
import { Relay, atEnd, bundle, documentId, saved, share, until, upload } from './relay.mjs';
import { connect, emptySync, join, joined, refused, sendTo, stoppedWhileConnecting } from './raw.mjs';

test('the handshake answers with the fields that clients need', async t => {
  const relay = await Relay.start(t, { sync: { peer_id: '"the-relay"' } });
  const socket = await connect(t, relay, { path: '/any/path?x=1' });
  join(socket);
  await until('the answer', () => socket.heard.length === 1);
  const [{ peerMetadata, ...answer }] = socket.heard;
  assert.deepEqual(answer, { type: 'peer', senderId: 'the-relay', targetId: 'peer-1', selectedProtocolVersion: '1' });
  assert.equal(peerMetadata.isEphemeral, false);
  assert.match(peerMetadata.storageId, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  await joined(t, relay, 'the-relay');
  await until('it warns', () => relay.log.includes("a peer has joined with this relay's own peer id, the-relay"));
});

test('a join without versions is accepted, and one without version 1 is refused', async t => {
  const relay = await Relay.start(t);
  const without = await connect(t, relay);
  join(without, 'a', { supportedProtocolVersions: undefined });
  await until('the answer', () => without.heard.length === 1);
  assert.equal(without.heard[0].type, 'peer');
  const other = await connect(t, relay);
  join(other, 'b', { supportedProtocolVersions: ['2'] });
  const { code, reason } = await other.closed;
  assert.equal(code, 1002);
  assert.match(reason, /^unsupported protocol version \(connection c\d+\)$/);
  const [{ senderId, ...error }] = other.heard;
  assert.deepEqual(error, { type: 'error', targetId: 'b', message: 'unsupported protocol version' });
});

const BAD = {
  'a text frame': [socket => socket.send('hello'), 1003, /text frames/],
  'garbage': [socket => socket.send(Buffer.from([0xff, 0x00, 0x13])), 1007, /not a CBOR map/],
  'an empty frame': [socket => socket.send(Buffer.alloc(0)), 1007, /not a CBOR map/],
  'a message without a type': [socket => sendTo(socket, { senderId: 'peer-1' }), 1007, /has no type/],
  'a sync message without data': [
    socket => sendTo(socket, { type: 'sync', senderId: 'peer-1', targetId: 'relay', documentId: documentId(1) }), 1007, /has no data/],
  'a frame of Subduction': [socket => socket.send(Buffer.from('SUM\0\x01')), 1007, /Subduction protocol/],
  'data that is no sync message': [
    socket => sendTo(socket, { type: 'sync', senderId: 'peer-1', documentId: documentId(1), data: new Uint8Array([1, 2, 3]) }), 1007, /not an automerge sync message/],
  'sync data cut off': [
    socket => sendTo(socket, { type: 'sync', senderId: 'peer-1', documentId: documentId(1), data: new Uint8Array([0x42, 9, 9]) }), 1007, /not an automerge sync message/],
  'ephemera without a count': [
    socket => sendTo(socket, { type: 'ephemeral', senderId: 'peer-1', documentId: documentId(1), sessionId: 's', data: new Uint8Array() }), 1007, /has no count/],
  'a message that is too large': [socket => socket.send(Buffer.alloc(300_000)), 1009, /larger than/],
};

for (const [what, [send, code, text]] of Object.entries(BAD)) {
  test(`${what} closes only the socket that sent it`, async t => {
    const relay = await Relay.start(t, { sync: { max_message: '"256KiB"', peer_id: '"relay"' } });
    const honest = relay.client(t);
    const handle = await share(honest, { n: 1 });
    const bad = await joined(t, relay, 'peer-1');
    send(bad);
    const closed = await bad.closed;
    assert.equal(closed.code, code);
    assert.match(closed.reason, text);
    assert.match(closed.reason, /connection c\d+/);
    const error = bad.heard.find(({ type }) => type === 'error');
    assert.match(error.message, text);
    handle.change(doc => { doc.n = 2; });
    await saved(honest, handle);
  });
}

test('a document id that is not 16 bytes is refused, and the session continues', async t => {
  const relay = await Relay.start(t, { sync: { peer_id: '"relay"' } });
  const client = relay.client(t, { strict: true });
  const good = await share(client, { n: 1 });
  // automerge-repo accepts ids of any length.
  for (const id of [20, 3].map(length => documentId(new Uint8Array(length).fill(7)))) {
    await assert.rejects(client.repo.find(`automerge:${id}`), /unavailable/);
    client.repo.import(Automerge.save(Automerge.from({ theirs: 1 })), { docId: id });
  }
  good.change(doc => { doc.n = 2; });
  await saved(client, good);
  assert.equal(await relay.metric('tonk_relay_connections_ended_total{outcome="garbage"}'), 0);

  const socket = await joined(t, relay, 'peer-1');
  const about = { senderId: 'peer-1', targetId: 'relay', documentId: '../../etc/passwd' };
  sendTo(socket, { ...about, type: 'ephemeral', count: 1, sessionId: 's', data: Uint8Array.of(1) });
  sendTo(socket, { ...about, type: 'doc-unavailable' });
  sendTo(socket, { ...about, type: 'sync', data: emptySync() });
  await until('it is answered', () => socket.heard.length === 3);
  const [, error, unavailable] = socket.heard;
  assert.equal(error.type, 'error');
  assert.equal(error.message, 'document ../../etc/passwd: its id is not base58check of 16 bytes');
  assert.equal(unavailable.type, 'doc-unavailable');
  assert.equal(unavailable.documentId, about.documentId);
  assert.match(relay.log, /its document id "\.\.\/\.\.\/etc\/passwd" is not base58check/);
  assert.ok(await relay.metric('tonk_relay_messages_dropped_total{reason="document_id"}') >= 5);
});

test('a document that is too large for a message is refused, and the session continues', async t => {
  const relay = await Relay.start(t, { sync: { max_message: '"64KiB"', peer_id: '"relay"' } });
  const client = relay.client(t, { strict: true });
  const good = await share(client, { n: 1 });
  const refusals = () => relay.metric('tonk_relay_documents_refused_total{reason="too_large"}');
  const bad = client.repo.create({ bytes: new Uint8Array(randomBytes(100_000)) });
  await until('it is refused', async () => await refusals() === 1);
  const line = `the message about ${bad.documentId} is larger than 64KiB (sync.max_message)`;
  await until('the log says so', () => relay.log.includes(line));
  good.change(doc => { doc.n = 2; });
  await saved(client, good);

  // The document id before the data, as samod writes it, and after it, as automerge-repo does; in
  // one frame, and in fragments, as Chromium sends it.
  const socket = await joined(t, relay, 'peer-1');
  const [first, second, data] = [documentId(1), documentId(2), new Uint8Array(150_000)];
  const from = { senderId: 'peer-1', targetId: 'relay' };
  sendTo(socket, { type: 'sync', documentId: first, ...from, data });
  assert.equal(await refused(socket, first), `the message about ${first} is larger than 64KiB (sync.max_message)`);
  const message = Buffer.from(cbor.encode({ type: 'sync', data, documentId: second, ...from }));
  for (let at = 0; at < message.length; at += 40_000) {
    socket.ping();
    socket.send(message.subarray(at, at + 40_000), { fin: at + 40_000 >= message.length });
  }
  assert.match(await refused(socket, second), /is larger than 64KiB/);
  // The client is notified once, and what follows is dropped.
  const heard = socket.heard.length;
  sendTo(socket, { type: 'sync', data, documentId: second, ...from });
  sendTo(socket, { type: 'ephemeral', documentId: good.documentId, ...from, count: 1, sessionId: 's', data });
  sendTo(socket, { type: 'request', documentId: good.documentId, ...from, data: emptySync() });
  await until('another document is served', () => socket.heard.slice(heard).some(({ documentId: id }) => id === good.documentId));
  const answers = socket.heard.slice(heard).filter(({ type }) => type !== 'sync');
  assert.deepEqual(answers.map(({ message }) => message), [`document ${good.documentId}: presence is larger than 64KiB (sync.max_message)`]);
  assert.equal(await relay.metric('tonk_relay_messages_dropped_total{reason="too_large"}'), 1);
  assert.equal(await refusals(), 3);
  assert.equal(await relay.metric('tonk_relay_arriving_bytes'), 0);
  assert.doesNotMatch(relay.log, /disconnected/);

  // Much larger messages are not read to their end.
  sendTo(socket, { type: 'sync', documentId: first, ...from, data: new Uint8Array(300_000) });
  assert.equal((await socket.closed).code, 1009);
});

test('a message with another sender or target is dropped and counted, and the socket stays open', async t => {
  const relay = await Relay.start(t, { sync: { peer_id: '"relay"' } });
  const socket = await joined(t, relay, 'peer-1');
  const message = { type: 'request', documentId: documentId(1), data: emptySync() };
  sendTo(socket, { ...message, senderId: 'somebody else', targetId: 'relay' });
  sendTo(socket, { ...message, senderId: 'peer-1', targetId: 'somebody else' });
  sendTo(socket, { type: 'brand-new', senderId: 'peer-1', targetId: 'relay', data: 7, count: 'many', message: [1] });
  sendTo(socket, { ...message, senderId: 'peer-1', targetId: 'relay' });
  await until('the last one is answered', () => socket.heard.length === 2);
  assert.equal(socket.heard[1].type, 'doc-unavailable');
  for (const reason of ['sender', 'target', 'unknown_type']) {
    assert.equal(await relay.metric(`tonk_relay_messages_dropped_total{reason="${reason}"}`), 1, reason);
  }
});

test('no client can send messages for a connected peer', async t => {
  const relay = await Relay.start(t);
  const [alice, tab, mallory] = [await joined(t, relay, 'alice'), await joined(t, relay, 'worker'), await joined(t, relay, 'mallory')];
  const presence = (senderId, count) => ({
    type: 'ephemeral', senderId, targetId: alice.heard[0].senderId, documentId: documentId(1), sessionId: 's', count,
    data: new Uint8Array(cbor.encode({ hello: count })),
  });
  sendTo(alice, presence('alice', 1));
  await until('alice has joined', async () => await relay.metric('tonk_relay_messages_total{direction="in",type="ephemeral"}') === 1);
  sendTo(tab, presence('a tab of worker', 1));
  await until('messages of a tab arrive through its worker', () => alice.heard.length === 2);
  assert.equal(alice.heard[1].senderId, 'a tab of worker');
  sendTo(mallory, presence('worker', 1));
  await until('the theft is dropped', async () => await relay.metric('tonk_relay_messages_dropped_total{reason="sender"}') === 1);
  assert.equal(alice.heard.length, 2);
});

test('a client that does not join in time is disconnected', async t => {
  const relay = await Relay.start(t, { sync: { handshake_timeout: '"200ms"' } });
  const silent = await connect(t, relay);
  const { code, reason } = await silent.closed;
  assert.equal(code, 1002);
  assert.match(reason, /no join message within 200ms/);
  const wrong = await connect(t, relay);
  sendTo(wrong, { type: 'sync', senderId: 'x', documentId: documentId(1), data: emptySync() });
  assert.match((await wrong.closed).reason, /expected a join message first, got sync/);
});

test('a peer that does not answer pings is disconnected, and one that does is not', async t => {
  const relay = await Relay.start(t, { sync: { ping_interval: '"300ms"' } });
  const alive = await joined(t, relay, 'alive');
  // A socket whose process hangs: the kernel accepts bytes, but nothing answers.
  const dead = net.connect(relay.port, '127.0.0.1');
  atEnd(t, () => dead.destroy());
  dead.write('GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
    'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n');
  const message = Buffer.from(cbor.encode({ type: 'join', senderId: 'dead', supportedProtocolVersions: ['1'] }));
  dead.write(Buffer.concat([Buffer.from([0x82, 0x80 | message.length, 0, 0, 0, 0]), message]));
  await until('it is closed', async () => await relay.metric('tonk_relay_connections_ended_total{outcome="dead"}') === 1);
  assert.equal(alive.readyState, WebSocket.OPEN);
});

test('the relay waits for a client that is busy in the middle of a message', async t => {
  const relay = await Relay.start(t, { sync: { ping_interval: '"500ms"', peer_id: '"relay"' } });
  const large = documentId(9);
  assert.equal((await upload(relay, bundle({ [large]: { bytes: new Uint8Array(randomBytes(6 << 20)) } }))).status, 200);
  const [arriving, leaving] = [await joined(t, relay, 'arriving'), await joined(t, relay, 'leaving')];
  // Two processes that are stopped for more than two intervals: one in the middle of sending a
  // message, the other without reading.
  const frame = cbor.encode({ type: 'request', senderId: 'arriving', targetId: 'relay', documentId: documentId(1), data: emptySync(),
    more: new Uint8Array(100_000) });
  const head = Buffer.from([0x82, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
  head.writeBigUInt64BE(BigInt(frame.length), 2);
  const half = new Promise(resolve => leaving._socket.on('data', function pause(data) {
    // The beginning of the document, and not a ping.
    if (data.length > 1000) resolve(leaving._socket.off('data', pause).pause());
  }));
  sendTo(leaving, { type: 'request', senderId: 'leaving', targetId: 'relay', documentId: large, data: emptySync() });
  await half;
  arriving._socket.pause();
  arriving._socket.write(Buffer.concat([head, frame.subarray(0, 60_000)]));
  await new Promise(resolve => setTimeout(resolve, 1700));
  arriving._socket.write(frame.subarray(60_000));
  for (const socket of [arriving, leaving]) socket._socket.resume();
  await until('it is answered', () => arriving.heard.some(({ type }) => type === 'doc-unavailable'));
  await until('it has the document', () => leaving.heard.some(({ type }) => type === 'sync'));
  for (const socket of [arriving, leaving]) assert.equal(socket.readyState, WebSocket.OPEN);
});

test('a page of another origin is refused after the upgrade', async t => {
  const relay = await Relay.start(t, {
    auth: { mode: '"open"' },
    http: { allowed_origins: '["https://app.example.org", "https://*.example.com"]' },
  });
  for (const origin of ['https://app.example.org', 'https://app.example.com', 'https://a.b.example.com']) {
    const good = await connect(t, relay, { headers: { origin } });
    join(good);
    await until('the handshake', () => good.heard.length === 1);
    assert.equal(good.heard[0].type, 'peer', origin);
  }
  for (const origin of ['https://evil.example.org', 'https://example.com', 'https://evilexample.com', 'http://app.example.com']) {
    const bad = await connect(t, relay, { headers: { origin } });
    const { code } = await bad.closed;
    assert.equal(code, 4403, origin);
    assert.equal(bad.heard[0].type, 'error');
  }
});

test('a peer id that could forge a log line is refused', async t => {
  const relay = await Relay.start(t);
  for (const c of ['\n', '\u202e', '\u2028', '\u200b', '\u2066']) {
    const socket = await connect(t, relay);
    join(socket, `peer${c}1`);
    const { code, reason } = await socket.closed;
    assert.equal(code, 1007);
    assert.match(reason, /control or format characters/);
  }
  await joined(t, relay, 'peer 東京 ä');
});

test('of many clients that connect at once at most limits.connections are accepted', async t => {
  const relay = await Relay.start(t, { limits: { connections: '3', handshakes_per_address: '"200/s"' } });
  const all = await Promise.all(Array.from({ length: 40 }, () => connect(t, relay)));
  const closed = all.filter(socket => { socket.closed.then(({ code }) => { socket.code = code; }); return true; });
  await until('the others are refused', () => closed.filter(({ code }) => code === 1013).length === 37);
  assert.equal(await relay.metric('tonk_relay_connections'), 3);
});

test('a full relay refuses further connections, and serves the others', async t => {
  const relay = await Relay.start(t, { limits: { connections: '2' } });
  const here = [await joined(t, relay, 'a'), await joined(t, relay, 'b')];
  const third = await connect(t, relay);
  const { code, reason } = await third.closed;
  assert.equal(code, 1013);
  assert.match(reason, /limits\.connections/);
  here[0].close();
  await until('there is room again', async () => await relay.metric('tonk_relay_connections') === 1);
  await joined(t, relay, 'c');
});

test('a client that opens too many documents is disconnected', async t => {
  const relay = await Relay.start(t, { limits: { documents_per_connection: '3' }, sync: { peer_id: '"relay"' } });
  const socket = await joined(t, relay, 'peer-1');
  for (let n = 1; n <= 4; n++) {
    sendTo(socket, { type: 'request', senderId: 'peer-1', targetId: 'relay', documentId: documentId(n), data: emptySync() });
  }
  assert.equal((await socket.closed).code, 4429);
});

test('a slow reader is disconnected before it fills memory', async t => {
  const relay = await Relay.start(t, { sync: { send_queue: '"1MiB"' } });
  const writer = relay.client(t);
  const handle = await share(writer, { blob: new Uint8Array(0) });
  const slow = await joined(t, relay, 'slow');
  sendTo(slow, { type: 'request', senderId: 'slow', targetId: slow.heard[0].senderId, documentId: handle.documentId, data: emptySync() });
  await until('it follows the document', () => slow.heard.some(({ type }) => type === 'sync'));
  slow._socket.pause();
  let mib = 0;
  await until('it is closed', async () => {
    const blob = crypto.getRandomValues(new Uint8Array(65536));
    if (mib < 64) handle.change(doc => { doc.blob = blob; });
    mib += 1 / 16;
    // Its own presence is not echoed, so everything it does not read comes from the others.
    slow._socket.pause();
    sendTo(slow, { type: 'sync', senderId: 'slow', targetId: slow.heard[0].senderId, documentId: handle.documentId, data: emptySync() });
    return await relay.metric('tonk_relay_refused_total{reason="send_queue"}') === 1;
  }, 60);
  assert.equal(await relay.metric('tonk_relay_unsent_bytes'), 0);
  handle.change(doc => { doc.after = true; });
  await saved(writer, handle);
});

test('an automerge-repo client survives every refusal, and reconnects', async t => {
  const relay = await Relay.start(t, {
    http: { allowed_origins: '["https://only.example.org"]' }, limits: { connections: '1' },
  });
  // A full relay refuses this client repeatedly.
  const first = await joined(t, relay, 'first');
  const client = relay.client(t, { retry: 50, strict: true });
  await until('several refusals', async () => await relay.metric('tonk_relay_refused_total{reason="connections"}') >= 3);
  first.close();
  const handle = await share(client, { n: 1 });
  // A relay that stops and starts again. After kill -9 the kernel may reset a connection that is
  // being made, and the adapter throws.
  await relay.stop();
  handle.change(doc => { doc.n = 2; });
  await relay.start();
  await saved(client, handle);
});

test('clients that are connecting while the relay stops are told, and not reset', async t => {
  const relay = await Relay.start(t);
  const ended = await stoppedWhileConnecting(t, relay, relay.ws, 8);
  assert.deepEqual(ended, Array(8).fill(1012));
});
