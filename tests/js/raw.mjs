// A bare WebSocket that speaks the protocol by hand, for what automerge-repo clients never do.
import { cbor } from '@automerge/automerge-repo';
import * as Automerge from '@automerge/automerge';
import WebSocket from 'ws';
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { deflateRawSync } from 'node:zlib';
import { atEnd, until } from './relay.mjs';

/** A socket that keeps the messages it receives. */
export async function connect(t, relay, { path = '', headers, protocols = [], localAddress } = {}) {
  const socket = new WebSocket(relay.ws + path, protocols, { headers, localAddress });
  atEnd(t, () => socket.terminate());
  socket.heard = [];
  socket.on('message', data => socket.heard.push(cbor.decode(data)));
  socket.on('error', () => {});
  socket.closed = new Promise(resolve =>
    socket.on('close', (code, reason) => resolve({ code, reason: String(reason) })));
  await new Promise((resolve, reject) => { socket.on('open', resolve); socket.on('error', reject); });
  return socket;
}

export const sendTo = (socket, message) => socket.send(cbor.encode(message));

export const join = (socket, senderId = 'peer-1', extra = {}) =>
  sendTo(socket, { type: 'join', senderId, peerMetadata: {}, supportedProtocolVersions: ['1'], ...extra });

/**
 * Stops a relay while `count` sockets are connecting to it. Returns the close code or the error of
 * each.
 */
export async function stoppedWhileConnecting(t, relay, url, count) {
  relay.child.kill('SIGSTOP');
  const ends = Array.from({ length: count }, () => {
    const socket = new WebSocket(url);
    atEnd(t, () => socket.terminate());
    return new Promise(resolve => { socket.on('close', resolve); socket.on('error', resolve); });
  });
  const port = relay.port.toString(16).toUpperCase().padStart(4, '0');
  await until('they wait to be accepted', async () => {
    const sockets = (await readFile('/proc/net/tcp', 'utf8')).split('\n');
    return sockets.filter(line => line.match(`:${port} [0-9A-F]+:[0-9A-F]+ 01`)).length >= count;
  });
  relay.child.kill('SIGTERM');
  relay.child.kill('SIGCONT');
  const ended = await Promise.all(ends);
  await relay.exited;
  return ended;
}

/** A socket that has joined. */
export async function joined(t, relay, senderId, options) {
  const socket = await connect(t, relay, options);
  join(socket, senderId);
  await until('the handshake', () => socket.heard.some(message => message.type === 'peer'));
  socket.us = senderId;
  socket.relay = socket.heard.find(message => message.type === 'peer').senderId;
  return socket;
}

/** Sends an automerge sync message; by default one that requests the document. */
export function sync(socket, documentId, data = emptySync(), type = 'request') {
  sendTo(socket, { type, documentId, senderId: socket.us, targetId: socket.relay, data });
}

export const emptySync = () => Automerge.generateSyncMessage(Automerge.init(), Automerge.initSyncState())[1];

/** A LEB128 number. */
export const leb = number => {
  const out = [];
  for (; number >= 128; number = Math.floor(number / 128)) out.push((number % 128) | 128);
  return [...out, number];
};

/** An automerge sync message of version 1 with one chunk; by default with an unknown head. */
export function syncMessageWith(chunk, head = Array(32).fill(7)) {
  return Uint8Array.from([0x42, 1, ...head, 0, 0, 1, ...leb(chunk.length), ...chunk]);
}

/** A change chunk with one operation column that is a single run. */
export function runs(length) {
  const column = [...leb(length), 0];
  // No dependencies, an actor, the first operation; then one column of integers.
  const data = [0, 1, 7, 1, 1, 0, 0, 0, 1, 0x42, column.length, ...column];
  return chunk(1, data);
}

/** A document chunk with one deflated column of `mib` MiB of zeros. */
export function zeros(mib) {
  const packed = deflateRawSync(Buffer.alloc(mib << 20));
  return chunk(0, Uint8Array.from([0, 0, 0, 1, 0x5f, ...leb(packed.length), ...packed]));
}

export const chunk = (kind, data) =>
  Uint8Array.from([0x85, 0x6f, 0x4a, 0x83, 0, 0, 0, 0, kind, ...leb(data.length), ...data]);

/**
 * A change chunk whose checksum is valid: `columns` are those of its operations, `[specification, bytes]`
 * in rising order. Its hash is in `hash`.
 */
export function change({ deps = [], actor = [0xbb], seq = 1, startOp, others = [], columns = [] }) {
  const data = [...leb(deps.length), ...deps.flatMap(dep => [...dep]), ...leb(actor.length), ...actor, ...leb(seq), ...leb(startOp), 0, 0,
    ...leb(others.length), ...others.flatMap(other => [...leb(other.length), ...other]),
    ...leb(columns.length), ...columns.flatMap(([name, bytes]) => [...leb(name), ...leb(bytes.length)]), ...columns.flatMap(([, bytes]) => bytes)];
  const checked = Uint8Array.from([1, ...leb(data.length), ...data]);
  const hash = createHash('sha256').update(checked).digest();
  return Object.assign(Uint8Array.from([0x85, 0x6f, 0x4a, 0x83, ...hash.subarray(0, 4), ...checked]), { hash });
}

/**
 * Waits until a socket is told that its changes of a document are refused. Returns the reason. The
 * socket stays open.
 */
export async function refused(socket, documentId) {
  await until('it is refused', () => {
    if (socket.readyState !== WebSocket.OPEN) throw new Error('the socket was closed');
    return socket.heard.some(message => message.type === 'doc-unavailable' && message.documentId === documentId);
  });
  return socket.heard.find(({ type, message }) => type === 'error' && message.includes(documentId)).message;
}

/**
 * Change chunks, by name, that no reader can load together with an honest document; and two honest
 * ones.
 */
export function poisonedChanges(doc) {
  const text = [...'a'].map(letter => letter.charCodeAt(0));
  // One value of a map. -1 begins a literal, as automerge writes it; 1 a run of one, which
  // automerge never writes.
  const put = literal => [[0x15, [...literal, 1, ...text]], [0x34, [1]], [0x42, [...literal, 1]], [0x56, [...literal, 0]], [0x70, [...literal, 0]]];
  const [canonical, other] = [[0x7f], [1]];
  const mark = textOp => [[0x01, [1, 1]], [0x02, [1, textOp]], [0x11, [0, 1]], [0x13, [0x7f, 0]], [0x34, [0, 1]], [0x42, [1, 7]],
    [0x56, [1, 0]], [0x70, [1, 0]], [0x94, [1]]];
  const bytes = hex => [...Buffer.from(hex, 'hex')];
  const [first] = Automerge.getAllChanges(doc).map(Automerge.decodeChange);
  const [deps, next, actor] = [Automerge.getHeads(doc).map(bytes), first.startOp + first.ops.length, bytes(first.actor)];
  const one = change({ deps, startOp: next, columns: put(canonical) });
  return {
    good: {
      aChange: [one],
      leapsALittle: [change({ deps, startOp: next + 500, columns: put(canonical) })],
    },
    evil: {
      otherRuns: [change({ deps, startOp: next, columns: put(other) })],
      numberedBelow: [change({ deps, startOp: 1, columns: put(canonical) })],
      emptyAndAhead: [change({ deps, startOp: next + 500 })],
      emptyAndBelow: [change({ deps, startOp: 1 })],
      endOfNoMark: [change({ deps, startOp: next, others: [actor], columns: mark(1) })],
      outOfTurn: [change({ deps, seq: 5, startOp: next, columns: put(canonical) })],
      deletesNothing: [change({ deps, startOp: next, columns: put(canonical).map(([name, bytes]) => [name, name === 0x42 ? [0x7f, 3] : bytes]) })],
      // The second change omits the first from its dependencies.
      forgetsItself: [one, change({ deps, seq: 2, startOp: next, columns: put(canonical) })],
      // JavaScript allocates memory for all numbers in between.
      leapsFar: [change({ deps, startOp: 300_000_000, columns: put(canonical) })],
    },
  };
}
