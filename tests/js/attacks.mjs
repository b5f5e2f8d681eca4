// Attacks on a relay, each in a process of its own: node attacks.mjs NAME PORT SECONDS. It sends
// 'attacking' to its parent when it is prepared, and its counts at the end. If the relay closes a
// socket, the attack continues with another one.
import net from 'node:net';
import { randomBytes } from 'node:crypto';
import { pathToFileURL } from 'node:url';
import WebSocket from 'ws';
import * as Automerge from '@automerge/automerge';
import { cbor } from '@automerge/automerge-repo';
import { bundle, documentId, entry } from './relay.mjs';
import { syncMessageWith, emptySync, runs, zeros } from './raw.mjs';

const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
const random = () => crypto.getRandomValues(new Uint8Array(16));

/** A WebSocket whose close is not an error. */
function socketOf(port, { localAddress } = {}) {
  const socket = new WebSocket(`ws://127.0.0.1:${port}/`, { localAddress });
  socket.on('error', () => {});
  socket.opened = new Promise(resolve => { socket.on('open', resolve); socket.on('close', resolve); socket.on('error', resolve); });
  socket.frame = message => { if (socket.readyState === 1) socket.send(message instanceof Uint8Array ? message : cbor.encode(message)); };
  return socket;
}

async function joinedTo(port, name = `attacker-${Math.random()}`, options) {
  const socket = socketOf(port, options);
  await socket.opened;
  socket.name = name;
  socket.on('message', data => { try { socket.relay ??= cbor.decode(data).senderId; } catch { /* not read */ } });
  socket.frame({ type: 'join', senderId: name, peerMetadata: {}, supportedProtocolVersions: ['1'] });
  for (let n = 0; n < 100 && !socket.relay && socket.readyState === 1; n++) await wait(10);
  return socket;
}

const sendAbout = (socket, documentId, data, type = 'sync') =>
  socket.frame({ type, documentId, senderId: socket.name, targetId: socket.relay, data });

/** A TCP connection that writes these bytes. */
function raw(port, bytes = '') {
  const socket = net.connect(port, '127.0.0.1');
  socket.on('error', () => {});
  if (bytes.length) socket.write(bytes);
  return socket;
}

const UPGRADE = 'GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n' +
  'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n';

/** The header of a masked frame; `first` is FIN and the opcode. */
export function frameHead(first, length) {
  const head = length < 126 ? Buffer.from([first, 0x80 | length]) : Buffer.alloc(10);
  if (length >= 126) { head[0] = first; head[1] = 0x80 | 127; head.writeBigUInt64BE(BigInt(length), 2); }
  return Buffer.concat([head, Buffer.alloc(4)]);
}

/** Repeats `once` until the time is over. */
async function repeatUntil(until, once) {
  while (Date.now() < until) { await once(); await wait(1); }
}

/** Not an attack, but a process that computes as much as attackers do, to measure the machine. */
async function elsewhere(port, until) {
  await repeatUntil(until, () => { for (const end = Date.now() + 20; Date.now() < end;); });
}

export const ATTACKS = {
  async neverJoin(port, until) {
    await repeatUntil(until, async () => { await Promise.all(Array.from({ length: 50 }, () => socketOf(port).opened)); await wait(50); });
  },
  async slowHandshakes(port, until) {
    const sockets = Array.from({ length: 300 }, () => raw(port));
    let at = 0;
    await repeatUntil(until, async () => { for (const s of sockets) s.write(UPGRADE[at % 60]); at++; await wait(50); });
  },
  async halfOpen(port, until) {
    for (let n = 0; n < 1500; n++) raw(port);
    await repeatUntil(until, () => wait(50));
  },
  async stalledReaders(port, until) {
    const document = documentId(12);
    const sockets = await Promise.all(Array.from({ length: 20 }, () => joinedTo(port)));
    await repeatUntil(until, async () => {
      for (const s of sockets) {
        s._socket?.pause();
        for (let n = 0; n < 20; n++) s.frame({ type: 'ephemeral', documentId: document, senderId: s.name, targetId: s.relay, count: n + Date.now(), sessionId: 's', data: new Uint8Array(20000) });
      }
      await wait(100);
    });
  },
  async messageFlood(port, until) {
    let socket = await joinedTo(port);
    const id = documentId(random());
    await repeatUntil(until, async () => {
      if (socket.readyState !== 1) socket = await joinedTo(port);
      for (let n = 0; n < 500; n++) sendAbout(socket, id, emptySync(), 'request');
      while (socket.bufferedAmount > 1 << 20 && Date.now() < until) await wait(5);
    });
  },
  async giantFrames(port, until) {
    const piece = Buffer.alloc(1 << 20);
    await repeatUntil(until, async () => {
      const socket = raw(port, UPGRADE);
      await wait(20);
      socket.write(frameHead(0x82, 2 ** 40));
      for (let n = 0; n < 20 && socket.writable; n++) { socket.write(piece); await wait(5); }
      socket.destroy();
    });
  },
  async largeMessages(port, until) {
    const piece = Buffer.alloc(1 << 20);
    await repeatUntil(until, async () => {
      const sockets = Array.from({ length: 8 }, () => raw(port, UPGRADE));
      await wait(20);
      for (const s of sockets) s.write(frameHead(0x82, 64 << 20));
      for (let n = 0; n < 16 && Date.now() < until; n++) { for (const s of sockets) if (s.writable) s.write(piece); await wait(30); }
      for (const s of sockets) s.destroy();
    });
  },
  async fragments(port, until) {
    const many = Buffer.concat(Array.from({ length: 5000 }, () => frameHead(0x00, 0)));
    await repeatUntil(until, async () => {
      const socket = raw(port, UPGRADE);
      await wait(20);
      socket.write(frameHead(0x02, 0));
      for (let n = 0; n < 50 && socket.writable && Date.now() < until; n++) { if (!socket.write(many)) await wait(5); }
      socket.destroy();
    });
  },
  async unfinished(port, until) {
    const sockets = await Promise.all(Array.from({ length: 20 }, () => joinedTo(port)));
    for (const s of sockets) { s._socket?.write(frameHead(0x82, 99 << 20)); s._socket?.write(Buffer.alloc(40 << 20)); }
    await repeatUntil(until, async () => { for (const s of sockets) s._socket?.write('x'); await wait(100); });
  },
  async pings(port, until) {
    const many = Buffer.concat(Array.from({ length: 2000 }, () => frameHead(0x89, 0)));
    const socket = raw(port, UPGRADE);
    socket.resume();
    await repeatUntil(until, async () => { if (!socket.write(many)) await wait(5); });
  },
  async garbage(port, until) {
    const types = ['join', 'peer', 'leave', 'request', 'sync', 'doc-unavailable', 'ephemeral', 'error', 'remote-subscription-change', 'remote-heads-changed', 'nonsense'];
    await repeatUntil(until, async () => {
      for (const type of types) {
        const socket = await joinedTo(port);
        const junk = [random(), 'x'.repeat(5000), null, -1, [[[]]], { a: { b: {} } }, 1e308][Math.floor(Math.random() * 7)];
        socket.frame({ type, senderId: socket.name, targetId: socket.relay, documentId: Math.random() < 0.5 ? junk : documentId(random()), data: junk, count: junk, sessionId: junk, add: junk, remove: junk, newHeads: junk });
        socket.frame(random());
        await wait(2);
        socket.terminate();
      }
    });
  },
  async unknownIds(port, until) {
    let socket = await joinedTo(port);
    await repeatUntil(until, async () => {
      if (socket.readyState !== 1) socket = await joinedTo(port);
      for (let n = 0; n < 100; n++) sendAbout(socket, documentId(random()), emptySync(), 'request');
    });
  },
  async bombs(port, until) {
    const chunks = [runs(5_000_000), runs(2 ** 40), zeros(200)];
    await repeatUntil(until, async () => {
      for (const bomb of chunks) {
        const socket = await joinedTo(port);
        sendAbout(socket, documentId(random()), syncMessageWith(bomb));
        await wait(5);
        socket.terminate();
      }
    });
  },
  async bombUploads(port, until) {
    const id = documentId(3);
    const bodies = [bundle({ [id]: { a: 1 } }, { xVendor: 'a'.repeat(900_000) }), Buffer.from('PK'), Buffer.alloc(200_000)];
    await repeatUntil(until, async () => {
      for (const body of bodies) {
        await fetch(`http://127.0.0.1:${port}/api/bundles`, { method: 'POST', body, headers: { 'content-type': 'application/octet-stream' } }).then(r => r.arrayBuffer()).catch(() => {});
      }
    });
  },
  async rooms(port, until) {
    let socket = await joinedTo(port);
    let made = 0;
    await repeatUntil(until, async () => {
      if (socket.readyState !== 1) socket = await joinedTo(port);
      for (let n = 0; n < 50 && made < 10_000; n++, made++) sendAbout(socket, documentId(random()), syncMessageWith(runs(10)));
    });
  },
  async httpTricks(port, until) {
    const lines = ['GET /../../etc/passwd HTTP/1.1', 'GET //api/bundles/%2e%2e%2fx HTTP/1.1', 'GET /api/bundles/..%2f..%2fetc HTTP/1.1',
      'GET /api/bundles/' + 'A'.repeat(6000) + ' HTTP/1.1', 'GET /metrics HTTP/9.9', 'BREW / HTTP/1.1', 'GET /\0 HTTP/1.1', 'GET / HTTP/1.1\r\nContent-Length: -1',
      'POST /api/bundles HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5', 'GET / HTTP/1.1\r\n' + 'X: y\r\n'.repeat(500), 'GET / HTTP/1.1\r\nUpgrade: websocket', '\x16\x03\x01'];
    await repeatUntil(until, async () => {
      for (const line of lines) { const s = raw(port, `${line}\r\nHost: x\r\n\r\n`); s.resume(); setTimeout(() => s.destroy(), 200); }
      await wait(20);
    });
  },
};

/** 60,000 empty changes in 97 bytes: `emptyChange` repeated. */
export const EMPTY_CHANGES = Buffer.from('hW9Kg18EIGgAVwEB4AECQ0g94ejdZBtIpgXslYY+j1l9weNozMuI2P7suL0GswcBBAMEEwQjBEAGQwZWBADg1AMA4NQDAeDUAwDg1AMA' +
  'fwDf1AMBfwDe1AMB4NQDB9/UAw==', 'base64');
/** A list of 400,000 nulls in 163 bytes, made by one change. */
export const NULLS = Buffer.from('hW9KgyRKmzkAlAEBAeEBz89ujyutO0HMoG939oKZ1wELEPeSFUVOClzPHyxdchsGAQIDAhMEIwJAAlYCCwEGAgYRBhMJFQchBCMENARCBlYEgAEE' +
  'fwB/AX+BtRh/AH8AfwcAAYC1GAAAAYC1GAEAAv+0GAAAAX4AAv60GAF/AWwAgLUYgbUYAIG1GAEBgLUYfwKAtRgBgbUYAIG1GAAA', 'base64');

/** Uploads a bundle that holds a saved document under several new ids. Returns the ids. */
export async function uploadCopies(port, saved, count) {
  const ids = Array.from({ length: count }, () => documentId(random()));
  const entries = Object.fromEntries(ids.map(id => [entry(id), saved]));
  const body = bundle({ [documentId(random())]: { a: 1 } }, {}, entries);
  const { status } = await fetch(`http://127.0.0.1:${port}/api/bundles`, { method: 'POST', body, headers: { 'content-type': 'application/octet-stream' } });
  if (status !== 200) throw new Error(`the upload was answered with ${status}`);
  return ids;
}

/** Waits until a condition holds, 30 s at most. */
async function waitFor(what, condition) {
  for (const end = Date.now() + 30_000; !condition(); await wait(20)) if (Date.now() > end) throw new Error(`not within 30 s: ${what}`);
}

/** The sync messages that a socket receives from now on, decoded, by document. */
function answers(socket) {
  const heard = new Map();
  socket.on('message', data => {
    const message = cbor.decode(data);
    if (message.type === 'sync') heard.set(message.documentId, Automerge.decodeSyncMessage(message.data));
  });
  return heard;
}

/** A sync message with these heads and 16 Bloom filters of one byte and 64 probes. */
export function manyFilters(heads) {
  const filters = Array.from({ length: 16 }, (_, n) => Buffer.from([0, 4, 1, 8, 64, n < 15 ? 0 : 255]));
  return Buffer.concat([Buffer.from([0x42, heads.length]), ...heads.map(head => Buffer.from(head, 'hex')), Buffer.from([0, filters.length]), ...filters, Buffer.of(0)]);
}

/** 12 connections that request parts of one stored bundle, `count` at a time. */
async function requestRanges(port, count) {
  const id = documentId(random());
  const body = bundle({ [id]: { data: randomBytes(400_000) } });
  await fetch(`http://127.0.0.1:${port}/api/bundles`, { method: 'POST', body, headers: { 'content-type': 'application/octet-stream' } });
  const ranges = Array.from({ length: count }, (_, n) => `${2 * n}-${2 * n}`).join(',');
  const request = Buffer.from(`GET /api/bundles/${id} HTTP/1.1\r\nHost: localhost\r\nRange: bytes=${ranges}\r\n\r\n`);
  return async until => {
    const statuses = {};
    await Promise.all(Array.from({ length: 12 }, () => repeatUntil(until, async () => {
      const socket = raw(port, request);
      const status = await new Promise(resolve => {
        socket.once('data', data => resolve(String(data).slice(9, 12)));
        socket.once('close', () => resolve('closed'));
      });
      socket.destroy();
      statuses[status] = (statuses[status] ?? 0) + 1;
      await wait(50);
    })));
    return statuses;
  };
}

/**
 * Attacks that need preparation. Each resolves to a function that attacks until a time, and returns
 * its counts.
 */
export const PREPARED = {
  async manyFilters(port) {
    const sockets = [];
    for (const id of await uploadCopies(port, EMPTY_CHANGES, 4)) {
      const socket = await joinedTo(port);
      const heard = answers(socket);
      sendAbout(socket, id, emptySync(), 'request');
      await waitFor('the document', () => heard.get(id)?.heads.length);
      // Responses are large, so they are not decoded from here on.
      socket.removeAllListeners('message');
      sockets.push({ socket, id, message: manyFilters(heard.get(id).heads) });
    }
    return async until => {
      let bytes = 0;
      // 10 kB a second for all documents together.
      await repeatUntil(until, async () => {
        for (const { socket, id, message } of sockets) { sendAbout(socket, id, message); bytes += message.length; }
        await wait(55);
      });
      return { bytes, open: sockets.filter(({ socket }) => socket.readyState === 1).length };
    };
  },
  // A header of 349 kB, and one that fits into 30 KiB.
  manyRanges: port => requestRanges(port, 30_000),
  someRanges: port => requestRanges(port, 2_800),
  async wakeDocuments(port) {
    const ids = await uploadCopies(port, NULLS, 8);
    const keeper = await joinedTo(port);
    const heard = answers(keeper);
    for (const id of ids) sendAbout(keeper, id, emptySync(), 'request');
    await waitFor('the documents', () => ids.every(id => heard.get(id)?.heads.length));
    keeper.removeAllListeners('message');
    return async until => {
      let [woken, answered] = [0, 0];
      await repeatUntil(until, async () => {
        // Rooms become idle after 1.5 s. A new client must be answered from the document itself.
        const sockets = await Promise.all(ids.map(() => joinedTo(port)));
        await wait(2000);
        const all = sockets.map(answers);
        sockets.forEach((socket, n) => sendAbout(socket, ids[n], emptySync(), 'request'));
        woken += ids.length;
        for (const end = Date.now() + 15_000; Date.now() < end && all.some(({ size }) => size === 0);) await wait(10);
        answered += all.filter(({ size }) => size > 0).length;
        for (const socket of sockets) socket.terminate();
      });
      return { woken, answered };
    };
  },
  async forwarding(port) {
    const members = [];
    for (let n = 0; n < 100; n++) members.push(joinedTo(port, undefined, { localAddress: `127.0.1.${1 + n % 10}` }));
    const sockets = await Promise.all(members);
    const ids = Array.from({ length: 250 }, () => documentId(random()));
    const change = Automerge.getLastLocalChange(Automerge.from({ n: 0 }));
    const heard = answers(sockets[0]);
    const head = [...Buffer.from(Automerge.decodeChange(change).hash, 'hex')];
    for (const id of ids) sendAbout(sockets[0], id, syncMessageWith(change, head));
    await waitFor('the documents', () => ids.every(id => heard.get(id)?.heads.length));
    const ask = emptySync();
    let received = 0;
    for (const socket of sockets.slice(1)) socket.on('message', () => { received++; });
    for (const socket of sockets.slice(1)) { for (const id of ids) sendAbout(socket, id, ask, 'request'); await wait(10); }
    await waitFor('the members', () => received >= 99 * ids.length);
    // Counts only requests that are forwarded.
    const request = Buffer.from('request');
    let forwarded = 0;
    for (const socket of sockets) { socket.removeAllListeners('message'); socket.on('message', data => { if (data.includes(request)) forwarded++; }); }
    return async until => {
      let asked = 0;
      await repeatUntil(until, async () => {
        for (const socket of sockets) sendAbout(socket, documentId(random()), ask, 'request');
        asked += sockets.length;
        await wait(20);
      });
      return { asked, forwarded, open: sockets.filter(({ readyState }) => readyState === 1).length };
    };
  },
  async subscribing(port) {
    const socket = socketOf(port);
    let storageId;
    socket.on('message', data => { storageId ??= cbor.decode(data).peerMetadata?.storageId; });
    await socket.opened;
    const senderId = socket.name = `attacker-${Math.random()}`;
    socket.frame({ type: 'join', senderId, peerMetadata: {}, supportedProtocolVersions: ['1'] });
    await waitFor('the handshake', () => storageId);
    const heard = answers(socket);
    const ids = Array.from({ length: 800 }, () => documentId(random()));
    const change = Automerge.getLastLocalChange(Automerge.from({ n: 0 }));
    const head = [...Buffer.from(Automerge.decodeChange(change).hash, 'hex')];
    for (const id of ids) { sendAbout(socket, id, syncMessageWith(change, head)); }
    await waitFor('the documents', () => ids.every(id => heard.get(id)?.heads.length));
    socket.removeAllListeners('message');
    let [sent, received] = [0, 0];
    socket.on('message', () => { received++; });
    const [add, remove] = [{ add: [storageId] }, { remove: [storageId] }]
      .map(what => cbor.encode({ type: 'remote-subscription-change', senderId, targetId: socket.relay, ...what }));
    return async until => {
      const start = Date.now();
      await repeatUntil(until, async () => {
        for (let n = 0; n < 10; n++) { socket.frame(remove); socket.frame(add); sent += 2; }
        await wait(100);
      });
      // Requests that are still running.
      for (let before = -1; before !== received; await wait(300)) before = received;
      return { documents: ids.length, sent, received, seconds: (Date.now() - start) / 1000 };
    };
  },
};

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [name, port, seconds] = process.argv.slice(2);
  const attack = name in PREPARED ? await PREPARED[name](Number(port)) : until => ({ ...ATTACKS, elsewhere })[name](Number(port), until);
  process.send?.('attacking');
  const counted = await attack(Date.now() + Number(seconds) * 1000);
  if (process.send) await new Promise(resolve => process.send(counted ?? {}, resolve));
  process.exit(0);
}
