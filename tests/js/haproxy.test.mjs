// The shipped example for HAProxy, with the real HAProxy in front of relays that share a database.
// Only addresses, paths and the number of connections in it are replaced.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import http from 'node:http';
import http2 from 'node:http2';
import { connect } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import WebSocket from 'ws';
import { freePort, replace } from './examples.mjs';
import { Postgres, Wire, skip as noDatabase } from './postgres.mjs';
import { Program } from './program.mjs';
import { joined } from './raw.mjs';
import { Relay, atEnd, documentId, folder, saved, share, until } from './relay.mjs';

// The certificate is made by the test.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
process.removeAllListeners('warning');

const SHIPPED = new URL('../../packaging/proxy/haproxy.cfg', import.meta.url);

/** Why the tests are skipped. */
function reason() {
  if (spawnSync('haproxy', ['-v'], { stdio: 'ignore' }).error) return 'needs haproxy: apt-get install haproxy';
  // It changes its root folder and its user.
  return process.getuid() === 0 ? noDatabase : 'needs root, as HAProxy does';
}
const skip = reason();

/** The most of the average number of sessions that a relay is given. */
const FACTOR = Number(/hash-balance-factor (\d+)/.exec(await readFile(SHIPPED, 'utf8'))[1]) / 100;
/** How many checks in a row have to fail until the sessions of a relay are closed, one each second. */
const FALL = Number(/ fall (\d+) .*shutdown-sessions/.exec(await readFile(SHIPPED, 'utf8'))[1]);
/** The line of the example that is for production. */
const TLS = 'bind :443,[::]:443 v6only ssl crt /etc/haproxy/sync.example.org.pem alpn h2,http/1.1';

/** The example's HAProxy, started as Debian's service starts it. */
class Haproxy {
  /** Starts it in front of what listens on these ports. */
  static async start(t, ports, { isTls = false } = {}) {
    const proxy = new Haproxy();
    Object.assign(proxy, { at: await folder(t), port: await freePort(), log: [], isTls });
    const log = createSocket('udp4').on('message', line => proxy.log.push(String(line)));
    log.bind(0, '127.0.0.1');
    await once(log, 'listening');
    atEnd(t, () => log.close());
    proxy.logPort = log.address().port;
    if (isTls) {
      const [key, cert] = ['key.pem', 'cert.pem'].map(name => join(proxy.at, name));
      execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes',
        '-days', '2', '-subj', '/CN=127.0.0.1', '-keyout', key, '-out', cert], { stdio: 'ignore' });
      await writeFile(join(proxy.at, 'sync.pem'), await readFile(cert, 'utf8') + await readFile(key, 'utf8'));
    }
    const file = await proxy.configure(ports);
    proxy.program = new Program('haproxy', ['-W', '-f', file], { stdio: ['ignore', 'pipe', 'pipe'] });
    // The master ends its workers.
    atEnd(t, () => proxy.program.kill('SIGTERM'));
    await proxy.checked(ports.length);
    return proxy;
  }

  get url() { return `${this.isTls ? 'https' : 'http'}://127.0.0.1:${this.port}`; }
  get ws() { return `${this.isTls ? 'wss' : 'ws'}://127.0.0.1:${this.port}`; }

  /** Writes its config file for relays on these ports, the fourth and later ones as the comments say. */
  async configure(ports) {
    let text = replace(await readFile(SHIPPED, 'utf8'), [
      ['/dev/log', `127.0.0.1:${this.logPort}`],
      ['/run/haproxy/admin.sock', join(this.at, 'admin.sock')],
      ...this.isTls ? [['    bind 127.0.0.1:8080\n', ''], [`#${TLS}`, TLS],
        [':443,[::]:443', `127.0.0.1:${this.port}`], ['/etc/haproxy/sync.example.org.pem', join(this.at, 'sync.pem')]]
        : [['127.0.0.1:8080', `127.0.0.1:${this.port}`]],
      ...ports.slice(0, 3).map((port, n) => [`127.0.0.1:${8091 + n}`, `127.0.0.1:${port}`]),
    ]);
    for (const [n, port] of ports.entries()) {
      if (n < 3) continue;
      const [last, name] = [`server c 127.0.0.1:${ports[2]}`, String.fromCharCode('a'.charCodeAt(0) + n)];
      text = replace(text, [
        [`${last} id 3\n`, `${last} id 3\n    server ${name} 127.0.0.1:${port} id ${n + 1}\n`],
        [`${last}\n`, `${last}\n    server ${name} 127.0.0.1:${port}\n`],
      ]);
    }
    const file = join(this.at, 'haproxy.cfg');
    await writeFile(file, text);
    return file;
  }

  /** Reloads it with these ports, as `systemctl reload` does. */
  async reload(ports) {
    await this.configure(ports);
    const before = (await this.command('show info')).match(/^Pid: (\d+)/m)[1];
    this.program.child.kill('SIGUSR2');
    await until('the new process answers', async () => {
      const info = await this.command('show info').catch(() => '');
      return info.match(/^Pid: (\d+)/m)?.[1] !== before && info.includes('Pid:');
    });
    await this.checked(ports.length);
  }

  /** The answer of its admin socket to a command. */
  command(words) {
    return new Promise((resolve, reject) => {
      const socket = connect(join(this.at, 'admin.sock'), () => socket.write(`${words}\n`));
      let text = '';
      socket.setEncoding('utf8').on('data', data => { text += data; });
      socket.on('end', () => resolve(text)).on('error', reject);
    });
  }

  /** For each server of a backend its name, status and number of sessions. */
  async servers(backend = 'relays') {
    const [head, ...lines] = (await this.command('show stat')).replace(/^# /, '').trim().split('\n').map(line => line.split(','));
    const rows = lines.map(line => Object.fromEntries(head.map((name, n) => [name, line[n]])));
    return rows.filter(row => row.pxname === backend && row.svname !== 'BACKEND')
      .map(row => ({ name: row.svname, status: row.status, sessions: Number(row.scur), check: row.check_status }));
  }

  async isUp(name) {
    return (await this.servers()).find(server => server.name === name).status.startsWith('UP');
  }

  /** Waits until it has checked every server of both backends, and at least one is up. */
  async checked(count) {
    await until('the relays are checked', async () => {
      assert.equal(this.program.ended, undefined, this.program.output);
      for (const backend of ['ready', 'relays']) {
        const servers = await this.servers(backend).catch(() => []);
        if (servers.length < count || servers.some(({ check }) => !/^(\* )?L/.test(check))) return false;
        if (!servers.some(({ status }) => status.startsWith('UP'))) return false;
      }
      return true;
    });
  }
}

const names = ['a', 'b', 'c'];

/** A relay of a group, whose peer id is its name. */
const relayOf = (t, postgres, name, cluster = {}) => Relay.start(t, postgres.config({
  sync: { peer_id: `"${name}"` },
  cluster: { database: `"${postgres.url()}"`, timeout: '"1s"', ...cluster },
}));

/** HAProxy in front of three relays on one database. */
async function group(t, { cluster = {}, of = {}, words = [] } = {}) {
  const postgres = await Postgres.start(t, words);
  const relays = await Promise.all(names.map(async name =>
    relayOf(t, postgres, name, { ...cluster, ...await of[name]?.() })));
  const proxy = await Haproxy.start(t, relays.map(relay => relay.port));
  return { postgres, relays, proxy };
}

/** Servers in place of relays. They answer with their number, and keep the headers of requests. */
async function pretenders(t) {
  const seen = [];
  const servers = await Promise.all([0, 1, 2].map(async n => {
    const server = http.createServer((request, response) => {
      if (request.headers.host === 'relay') return response.end('ok');
      seen.push(request.headers);
      request.on('data', data => { seen.bytes = (seen.bytes ?? 0) + data.length; });
      request.on('end', () => response.end(String(n)));
    });
    server.on('upgrade', (request, socket) => {
      seen.push(request.headers);
      socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n');
    });
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    atEnd(t, () => { server.closeAllConnections(); server.close(); });
    return server.address().port;
  }));
  return { seen, ports: servers };
}

/** A path with the hint of a document, which is the n-th. */
const hint = n => `/${documentId(Uint8Array.from({ length: 16 }, (_, k) => (k < 4 ? (n * 2654435761) >>> (8 * k) : n + k)))}`;

/** A session on a path; its `relay` is the name of the relay. */
const session = (t, proxy, path, who = 'peer') => joined(t, proxy, who, { path });

/** Sessions on these paths, opened one after the other. */
async function sessions(t, proxy, paths, who = 'peer') {
  const all = [];
  for (const [n, path] of paths.entries()) all.push(await session(t, proxy, path, `${who}-${n}`));
  return all;
}

/** The number of these sessions at each relay. */
const count = sessions => names.map(name => sessions.filter(({ relay }) => relay === name).length);

/** The name of the relay of a client that is connected. */
const relayName = client => client.repo.peers[0];
const isOpen = client => client.adapter.socket?.readyState === WebSocket.OPEN && client.repo.peers.length > 0;

/** A client behind HAProxy. An answer without a WebSocket, as 503, makes the test fail. */
const clientOf = (t, { relays, proxy }, path = '/') => relays.at(-1).client(t, { url: proxy.ws + path });

/**
 * Gives each relay 12 sessions, so that the limit leaves room for more. Returns a path of
 * each relay.
 */
async function load(t, proxy) {
  const paths = {};
  const kept = new Map(names.map(name => [name, 0]));
  const isSettled = () => until('HAProxy has seen it', async () =>
    (await proxy.servers()).every(({ name, sessions }) => sessions === kept.get(name)));
  for (let n = 0; [...kept.values()].some(number => number < 12); n += 1) {
    const socket = await session(t, proxy, hint(n), `peer-${n}`);
    if (kept.get(socket.relay) < 12) kept.set(socket.relay, kept.get(socket.relay) + 1);
    else socket.terminate();
  }
  for (let n = 1000; Object.keys(paths).length < 3; n += 1) {
    await isSettled();
    const socket = await session(t, proxy, hint(n), `peer-${n}`);
    paths[socket.relay] ??= hint(n);
    socket.terminate();
  }
  await isSettled();
  return paths;
}

const heads = handle => [...handle.heads()].sort().join();

/** Waits until all have the same and were told that it is saved. */
async function settled(copies) {
  const [[, first]] = copies;
  await until('all have the same', () => copies.every(([, handle]) => heads(handle) === heads(first)));
  for (const [client, handle] of copies) await saved(client, handle);
}

/** Edits a document until it is stopped. `made` is the number of edits. */
function edit(name, handle, every = 20) {
  const editor = { made: 0, stop: () => { editor.isStopped = true; return editor.running; } };
  editor.running = (async () => {
    for (; !editor.isStopped; await pause(every)) {
      handle.change(doc => { doc.edits[`${name}${editor.made}`] = editor.made; });
      editor.made += 1;
    }
  })();
  return editor;
}

/** Opens one session after the other on a path until it is stopped. Each must be admitted. */
function arrive(t, proxy, path) {
  const arriving = { opened: 0, longest: 0, stop: () => { arriving.isStopped = true; return arriving.running; } };
  arriving.running = (async () => {
    while (!arriving.isStopped) {
      const start = performance.now();
      const socket = new WebSocket(proxy.ws + path);
      await new Promise((resolve, reject) => socket.on('open', resolve).on('error', reject));
      arriving.longest = Math.max(arriving.longest, performance.now() - start);
      arriving.opened += 1;
      socket.on('error', () => {});
      socket.terminate();
    }
  })();
  return arriving;
}

/** Two clients of relay `a` with a document, and one of another relay. */
async function atA(t, all) {
  const { a: path, b: elsewhere } = await load(t, all.proxy);
  const users = [clientOf(t, all, path), clientOf(t, all, `${path}?token=one`)];
  const handle = await share(users[0], { edits: {} });
  const copy = await users[1].repo.find(handle.url);
  const other = clientOf(t, all, elsewhere);
  const others = await other.repo.find(handle.url);
  assert.deepEqual([...users, other].map(relayName), ['a', 'a', 'b']);
  return { path, users, copies: [[users[0], handle], [users[1], copy], [other, others]], handle, copy };
}

// The first two wait for HAProxy's 10 s, the others run meanwhile.
describe('haproxy', { concurrency: 3, skip }, () => {
  test('while the database is away for all relays, users stay and work on', async t => {
    // The longest time between relays that notice it: `a` writes, and the others have nothing to do.
    const all = await group(t, { cluster: { timeout: '"5s"' } });
    const { postgres, relays, proxy } = all;
    const { path, users, copies, handle, copy } = await atA(t, all);
    const sockets = copies.map(([client]) => client.adapter.socket);
    const editor = edit('a', handle);
    await until('there are edits', () => editor.made > 5);
    await postgres.tell('freeze');
    const start = Date.now();
    const since = [];
    await until('no relay is ready', async () => {
      for (const [n, relay] of relays.entries()) {
        if ((await fetch(`${relay.url}/readyz`)).status === 503) since[n] ??= Date.now() - start;
      }
      return since.filter(Boolean).length === 3;
    }, 40);
    t.diagnostic(`not ready after ${since.join(', ')} ms`);
    // The next check of each is one that the relay passes.
    const [first, last] = [Math.min(...since), Math.max(...since)];
    const long = Math.max(last + 5000, first + (FALL + 3) * 1000);
    await until('users would have left', () => Date.now() - start > long, 60);
    const servers = await proxy.servers();
    assert.ok(servers.every(({ status }) => status.startsWith('UP')), JSON.stringify(servers));
    assert.deepEqual(copies.map(([client]) => client.adapter.socket), sockets, 'nobody had to reconnect');
    const sent = editor.made;
    await until('users of one relay see each other', () => `a${sent - 1}` in copy.doc().edits);
    // A new client of the path gets the same relay.
    const late = clientOf(t, all, path);
    const found = await late.repo.find(handle.url);
    assert.equal(relayName(late), 'a');
    assert.ok(`a${sent - 1}` in found.doc().edits);
    await postgres.tell('thaw');
    await editor.stop();
    await settled([...copies, [late, found]]);
    assert.equal(Object.keys(handle.doc().edits).length, editor.made);
    assert.deepEqual(copies.map(([client]) => client.adapter.socket), sockets, 'nor when the database was back');
    assert.equal(users.every(isOpen), true);
  });

  test('a relay that is cut off from the database loses its users to the others', async t => {
    let wire;
    const of = { a: async () => {
      wire = await Wire.start(t, '127.0.0.84');
      return { database: `"postgres://postgres@127.0.0.1:${wire.port}/app"` };
    } };
    const all = await group(t, { of, words: ['-c', 'listen_addresses=127.0.0.84'] });
    const { relays, proxy } = all;
    const { path, users, copies, handle, copy } = await atA(t, all);
    const editors = [edit('one', handle), edit('two', copy)];
    await until('there are edits', () => editors.every(({ made }) => made > 5));
    wire.down();
    await until('the relay is not ready', async () => (await fetch(`${relays[0].url}/readyz`)).status === 503);
    const start = Date.now();
    await until('its users have left', () => users.every(client => isOpen(client) && relayName(client) !== 'a'), FALL + 20);
    t.diagnostic(`users have left ${Date.now() - start} ms after the relay was not ready`);
    assert.notEqual((await session(t, proxy, path)).relay, 'a', 'new clients go elsewhere');
    await Promise.all(editors.map(editor => editor.stop()));
    await settled(copies);
    assert.equal(Object.keys(handle.doc().edits).length, editors[0].made + editors[1].made);
    wire.up();
    await until('the relay is used again', () => proxy.isUp('a'));
    assert.equal((await session(t, proxy, path)).relay, 'a');
  });

  test('HAProxy accepts the example as it is, and warns of nothing', async () => {
    const { status, stdout, stderr } = spawnSync('haproxy', ['-c', '-dW', '-f', SHIPPED.pathname], { encoding: 'utf8' });
    assert.equal(status, 0, stderr);
    assert.doesNotMatch(stdout + stderr, /WARNING|ALERT/);
  });

  test('headers that a client must not choose are replaced', async t => {
    const { seen, ports } = await pretenders(t);
    const headers = { 'x-forwarded-for': '203.0.113.7, 203.0.113.8', 'x-forwarded-proto': 'gopher', forwarded: 'for=203.0.113.7' };
    for (const isTls of [false, true]) {
      const proxy = await Haproxy.start(t, ports, { isTls });
      seen.length = 0;
      await fetch(proxy.url, { headers });
      const socket = new WebSocket(proxy.ws, { headers });
      await new Promise(resolve => socket.on('unexpected-response', resolve));
      socket.on('error', () => {}).terminate();
      assert.equal(seen.length, 2);
      for (const { 'x-forwarded-for': address, 'x-forwarded-proto': proto, forwarded } of seen) {
        assert.deepEqual([address, proto, forwarded], ['127.0.0.1', isTls ? 'https' : 'http', undefined]);
      }
      assert.match(seen[1].connection, /^upgrade$/i);
      assert.match(seen[1]['sec-websocket-extensions'], /permessage-deflate/, 'client and relay agree on compression');
    }
  });

  test('with TLS, plain requests use HTTP/2, and WebSockets HTTP/1.1', async t => {
    const { seen, ports } = await pretenders(t);
    const proxy = await Haproxy.start(t, ports, { isTls: true });
    const session = http2.connect(proxy.url, { rejectUnauthorized: false });
    atEnd(t, () => session.destroy());
    const [settings] = await once(session, 'remoteSettings');
    assert.equal(session.alpnProtocol, 'h2');
    assert.ok(!settings.enableConnectProtocol, 'no WebSockets over HTTP/2');
    const request = session.request({ ':path': '/api/bundles', ':method': 'POST' });
    request.write(Buffer.alloc(4 << 20));
    await until('the beginning of the upload has been passed on', () => seen.bytes === 4 << 20);
    request.end();
    request.setEncoding('utf8');
    let text = '';
    for await (const part of request) text += part;
    assert.match(text, /^[012]$/);
    assert.equal(seen[0]['x-forwarded-proto'], 'https');
  });

  test('no token is logged, metrics are hidden, and no path is needed', async t => {
    const all = await group(t);
    const { relays, proxy } = all;
    assert.equal((await fetch(`${relays[0].url}/metrics`)).status, 200);
    for (const path of ['/metrics', '/metrics?x', '/%6detrics', '//metrics', '/x/../metrics', '/metrics/', '/./metrics']) {
      // fetch would normalise the path.
      const request = http.get({ host: '127.0.0.1', port: proxy.port, path, agent: false });
      const [response] = await once(request, 'response');
      response.resume();
      assert.equal(response.statusCode, 404, path);
    }
    const [one, two] = [clientOf(t, all), clientOf(t, all, `${hint(1)}?token=secret`)];
    const handle = await share(one, { n: 1 });
    const copy = await two.repo.find(handle.url);
    copy.change(doc => { doc.n = 2; });
    await until('the way back', () => handle.doc().n === 2);
    await settled([[one, handle], [two, copy]]);

    const headers = { referer: 'https://app.example.org/?token=secret' };
    assert.equal((await fetch(`${proxy.url}/livez?token=secret`, { headers })).status, 200);
    (await session(t, proxy, '/sync?token=secret')).close();
    await until('they are logged', () => ['/livez', '/sync'].every(path => proxy.log.some(line => line.includes(`GET ${path} `))));
    for (const relay of relays) await relay.end();
    assert.equal((await fetch(`${proxy.url}/away?token=secret`, { headers })).status, 503);
    await until('it is logged', () => proxy.log.some(line => line.includes('GET /away ')));
    const written = proxy.log.join('') + proxy.program.output;
    assert.doesNotMatch(written, /token=|secret/);
    t.diagnostic(proxy.log.find(line => line.includes('/sync')));
  });

  test('everybody with one path gets one relay, and no relay gets too much', async t => {
    const all = await group(t);
    const { proxy, relays } = all;
    const spread = await sessions(t, proxy, Array.from({ length: 60 }, (_, n) => hint(n)));
    const shares = count(spread);
    t.diagnostic(`60 documents: ${shares.join(', ')} sessions`);

    // A relay that is not full, so that nobody is sent on.
    const name = names[shares.indexOf(Math.min(...shares))];
    const path = hint(spread.findIndex(({ relay }) => relay === name));
    const clients = ['', '?token=a', '?token=b', '?x'].map(query => clientOf(t, all, path + query));
    const handle = await share(clients[0], { n: 1 });
    const copies = await Promise.all(clients.map(async client => [client, await client.repo.find(handle.url)]));
    copies[3][1].change(doc => { doc.n = 2; });
    await settled(copies);
    assert.deepEqual(clients.map(relayName), Array(4).fill(name));
    const live = await Promise.all(relays.map(relay => relay.metric('tonk_relay_rooms{state="live"}')));
    assert.deepEqual(live, names.map(other => (other === name ? 1 : 0)), 'one relay has it in memory');

    // One document that is in great demand.
    const crowd = await sessions(t, proxy, Array(60).fill(path), 'of-many');
    const loads = (await proxy.servers()).map(server => server.sessions);
    t.diagnostic(`and one with 60 more: ${loads.join(', ')} sessions`);
    const sum = loads.reduce((one, other) => one + other);
    // Rounded up; and each of HAProxy's two threads may take one at the same time.
    assert.ok(sum >= 124 && Math.max(...loads) <= Math.ceil(FACTOR * sum / 3) + 2, loads.join());
    const most = crowd.filter(({ relay }) => relay === name).length;
    assert.ok(most > 20, `its own relay has ${most} of the 60, which is more than a third`);
  });

  test('a fourth relay takes over its share, and moves nothing else', async t => {
    const all = await group(t);
    const { postgres, relays, proxy } = all;
    const paths = Array.from({ length: 400 }, (_, n) => hint(n));
    // Plain requests, one at a time: nothing is near the limit, and all that counts is the path.
    const placed = async () => {
      proxy.log.length = 0;
      const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
      for (const path of paths) {
        const [response] = await once(http.get(proxy.url + path, { agent }), 'response');
        await once(response.resume(), 'end');
      }
      agent.destroy();
      const places = new Map();
      await until('all are logged', () => {
        for (const line of proxy.log) {
          const [, path, name] = line.match(/"GET (\S+) .* relays\/(\w)/) ?? [];
          places.set(path, name);
        }
        return paths.every(path => places.has(path));
      });
      return paths.map(path => places.get(path));
    };
    const before = await placed();
    const client = clientOf(t, all, paths[0]);
    const handle = await share(client, { n: 1 });
    const { socket } = client.adapter;
    relays.push(await relayOf(t, postgres, 'd'));
    await proxy.reload(relays.map(relay => relay.port));
    const after = await placed();
    const moved = paths.filter((_, n) => before[n] !== after[n]).length;
    const shares = [...names, 'd'].map(name => after.filter(relay => relay === name).length);
    t.diagnostic(`of ${paths.length} documents ${moved} move; then the relays have ${shares.join(', ')}`);
    assert.ok(after.every((relay, n) => relay === before[n] || relay === 'd'), 'all that moved went to the new one');
    // A quarter is 100. The share of a relay with 256 points on the ring differs by a sixteenth of that, and four
    // standard deviations of 400 draws are 35.
    assert.ok(moved > 60 && moved < 140, `${moved} moved`);
    handle.change(doc => { doc.n = 2; });
    await saved(client, handle);
    assert.equal(client.adapter.socket, socket, 'sessions stay');
  });

  for (const [how, end] of [['stopped', relay => relay.stop()], ['killed', relay => relay.kill()]]) {
    test(`users of a relay that is ${how} go on with another, and lose nothing`, async t => {
      const all = await group(t);
      const { relays, proxy } = all;
      const { path, users, copies, handle, copy } = await atA(t, all);
      const editors = [edit('one', handle), edit('two', copy)];
      const arriving = arrive(t, proxy, path);
      await until('there are edits', () => editors.every(({ made }) => made > 10));
      const codes = [];
      for (const { adapter } of users) adapter.socket.addEventListener('close', ({ code }) => codes.push(code));
      const start = Date.now();
      const ended = end(relays[0]);
      await until('its users are at another', () => users.every(client => isOpen(client) && relayName(client) !== 'a'));
      t.diagnostic(`at another after ${Date.now() - start} ms`);
      assert.deepEqual(codes, how === 'stopped' ? [1012, 1012] : [1006, 1006]);
      await ended;
      const after = arriving.opened;
      await until('new sessions are opened', () => arriving.opened > after + 20);
      await Promise.all([...editors, arriving].map(one => one.stop()));
      t.diagnostic(`${arriving.opened} sessions were opened meanwhile, each within ${Math.round(arriving.longest)} ms`);
      await settled(copies);
      assert.equal(Object.keys(handle.doc().edits).length, editors[0].made + editors[1].made);
      if (how === 'stopped') assert.deepEqual((await ended).code, 0, relays[0].log);
      await relays[0].start();
      await until('it is used again', async () => {
        const socket = await session(t, proxy, path);
        socket.terminate();
        return socket.relay === 'a';
      });
    });
  }
});
