// Attacks on a relay, each a process of its own: node attacks.mjs NAME PORT SECONDS. What the relay does with its socket is no
// fault here; the attack goes on with the next.
import net from 'node:net';
import { pathToFileURL } from 'node:url';
import WebSocket from 'ws';
import { cbor } from '@automerge/automerge-repo';
import { bundle, documentId } from './relay.mjs';
import { bringing, emptySync, runs, zeros } from './raw.mjs';

const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
const random = () => crypto.getRandomValues(new Uint8Array(16));

/** A WebSocket whose end is no error. */
function socketOf(port, path = '/') {
  const socket = new WebSocket(`ws://127.0.0.1:${port}${path}`);
  socket.on('error', () => {});
  socket.opened = new Promise(resolve => { socket.on('open', resolve); socket.on('close', resolve); socket.on('error', resolve); });
  socket.frame = message => { if (socket.readyState === 1) socket.send(message instanceof Uint8Array ? message : cbor.encode(message)); };
  return socket;
}

async function joinedTo(port, name = `attacker-${Math.random()}`) {
  const socket = socketOf(port);
  await socket.opened;
  socket.name = name;
  socket.on('message', data => { try { socket.relay ??= cbor.decode(data).senderId; } catch { /* not read */ } });
  socket.frame({ type: 'join', senderId: name, peerMetadata: {}, supportedProtocolVersions: ['1'] });
  for (let n = 0; n < 100 && !socket.relay && socket.readyState === 1; n++) await wait(10);
  return socket;
}

const about = (socket, documentId, data, type = 'sync') =>
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

/** A masked frame's head: `first` is FIN and the opcode. */
export function frameHead(first, length) {
  const head = length < 126 ? Buffer.from([first, 0x80 | length]) : Buffer.alloc(10);
  if (length >= 126) { head[0] = first; head[1] = 0x80 | 127; head.writeBigUInt64BE(BigInt(length), 2); }
  return Buffer.concat([head, Buffer.alloc(4)]);
}

/** Do `once` again and again until the time is over. */
async function keepOn(until, once) {
  while (Date.now() < until) { await once(); await wait(1); }
}

/** No attack, but a process that computes as attackers do: what it costs the others is the machine's doing. */
async function elsewhere(port, until) {
  await keepOn(until, () => { for (const end = Date.now() + 20; Date.now() < end;); });
}

export const ATTACKS = {
  async neverJoin(port, until) {
    await keepOn(until, async () => { await Promise.all(Array.from({ length: 50 }, () => socketOf(port).opened)); await wait(50); });
  },
  async slowHandshakes(port, until) {
    const sockets = Array.from({ length: 300 }, () => raw(port));
    let at = 0;
    await keepOn(until, async () => { for (const s of sockets) s.write(UPGRADE[at % 60]); at++; await wait(50); });
  },
  async halfOpen(port, until) {
    for (let n = 0; n < 1500; n++) raw(port);
    await keepOn(until, () => wait(50));
  },
  async stalledReaders(port, until) {
    const document = documentId(12);
    const sockets = await Promise.all(Array.from({ length: 20 }, () => joinedTo(port)));
    await keepOn(until, async () => {
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
    await keepOn(until, async () => {
      if (socket.readyState !== 1) socket = await joinedTo(port);
      for (let n = 0; n < 500; n++) about(socket, id, emptySync(), 'request');
      while (socket.bufferedAmount > 1 << 20 && Date.now() < until) await wait(5);
    });
  },
  async giantFrames(port, until) {
    const piece = Buffer.alloc(1 << 20);
    await keepOn(until, async () => {
      const socket = raw(port, UPGRADE);
      await wait(20);
      socket.write(frameHead(0x82, 2 ** 40));
      for (let n = 0; n < 20 && socket.writable; n++) { socket.write(piece); await wait(5); }
      socket.destroy();
    });
  },
  async largeMessages(port, until) {
    const piece = Buffer.alloc(1 << 20);
    await keepOn(until, async () => {
      const sockets = Array.from({ length: 8 }, () => raw(port, UPGRADE));
      await wait(20);
      for (const s of sockets) s.write(frameHead(0x82, 64 << 20));
      for (let n = 0; n < 16 && Date.now() < until; n++) { for (const s of sockets) if (s.writable) s.write(piece); await wait(30); }
      for (const s of sockets) s.destroy();
    });
  },
  async fragments(port, until) {
    const many = Buffer.concat(Array.from({ length: 5000 }, () => frameHead(0x00, 0)));
    await keepOn(until, async () => {
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
    await keepOn(until, async () => { for (const s of sockets) s._socket?.write('x'); await wait(100); });
  },
  async pings(port, until) {
    const many = Buffer.concat(Array.from({ length: 2000 }, () => frameHead(0x89, 0)));
    const socket = raw(port, UPGRADE);
    socket.resume();
    await keepOn(until, async () => { if (!socket.write(many)) await wait(5); });
  },
  async garbage(port, until) {
    const types = ['join', 'peer', 'leave', 'request', 'sync', 'doc-unavailable', 'ephemeral', 'error', 'remote-subscription-change', 'remote-heads-changed', 'nonsense'];
    await keepOn(until, async () => {
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
    await keepOn(until, async () => {
      if (socket.readyState !== 1) socket = await joinedTo(port);
      for (let n = 0; n < 100; n++) about(socket, documentId(random()), emptySync(), 'request');
    });
  },
  async bombs(port, until) {
    const chunks = [runs(5_000_000), runs(2 ** 40), zeros(200)];
    await keepOn(until, async () => {
      for (const bomb of chunks) {
        const socket = await joinedTo(port);
        about(socket, documentId(random()), bringing(bomb));
        await wait(5);
        socket.terminate();
      }
    });
  },
  async bombUploads(port, until) {
    const id = documentId(3);
    const bodies = [bundle({ [id]: { a: 1 } }, { xVendor: 'a'.repeat(900_000) }), Buffer.from('PK'), Buffer.alloc(200_000)];
    await keepOn(until, async () => {
      for (const body of bodies) {
        await fetch(`http://127.0.0.1:${port}/api/bundles`, { method: 'POST', body, headers: { 'content-type': 'application/octet-stream' } }).then(r => r.arrayBuffer()).catch(() => {});
      }
    });
  },
  async rooms(port, until) {
    let socket = await joinedTo(port);
    let made = 0;
    await keepOn(until, async () => {
      if (socket.readyState !== 1) socket = await joinedTo(port);
      for (let n = 0; n < 50 && made < 10_000; n++, made++) about(socket, documentId(random()), bringing(runs(10)));
    });
  },
  async httpTricks(port, until) {
    const lines = ['GET /../../etc/passwd HTTP/1.1', 'GET //api/bundles/%2e%2e%2fx HTTP/1.1', 'GET /api/bundles/..%2f..%2fetc HTTP/1.1',
      'GET /api/bundles/' + 'A'.repeat(6000) + ' HTTP/1.1', 'GET /metrics HTTP/9.9', 'BREW / HTTP/1.1', 'GET /\0 HTTP/1.1', 'GET / HTTP/1.1\r\nContent-Length: -1',
      'POST /api/bundles HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5', 'GET / HTTP/1.1\r\n' + 'X: y\r\n'.repeat(500), 'GET / HTTP/1.1\r\nUpgrade: websocket', '\x16\x03\x01'];
    await keepOn(until, async () => {
      for (const line of lines) { const s = raw(port, `${line}\r\nHost: x\r\n\r\n`); s.resume(); setTimeout(() => s.destroy(), 200); }
      await wait(20);
    });
  },
};

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const [name, port, seconds] = process.argv.slice(2);
  await { ...ATTACKS, elsewhere }[name](Number(port), Date.now() + Number(seconds) * 1000);
  process.exit(0);
}
