// The shipped examples of reverse proxies, with the real nginx and the real caddy. Only names,
// ports and paths in them are replaced.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import http from 'node:http';
import http2 from 'node:http2';
import { join } from 'node:path';
import { test } from 'node:test';
import WebSocket from 'ws';
import { freePort, isFree, replace } from './examples.mjs';
import { Program } from './program.mjs';
import { Relay, atEnd, bundle, documentId, folder, saved, share, until } from './relay.mjs';

// The certificate is made by the test, and automerge-repo's adapter cannot be given a CA.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
process.removeAllListeners('warning');

const shipped = name => new URL(`../../packaging/proxy/${name}`, import.meta.url);
const isThere = (program, word) => !spawnSync(program, [word], { stdio: 'ignore' }).error;

const REFUSAL = 'HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n';

/** A proxy with a folder of its own, in front of a relay at `upstream`. */
class Proxy {
  static async start(t, upstream, { timeout = '5m', tries = '15s' } = {}) {
    const proxy = new this();
    proxy.at = await folder(t);
    proxy.port = await freePort();
    const key = join(proxy.at, 'key.pem');
    const words = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
      '-subj', '/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', key, '-out', join(proxy.at, 'cert.pem')];
    execFileSync('openssl', words, { stdio: 'ignore' });
    const args = await proxy.configure(upstream, timeout, tries);
    const env = { ...process.env, HOME: proxy.at, XDG_DATA_HOME: proxy.at, XDG_CONFIG_HOME: proxy.at };
    proxy.program = new Program(proxy.constructor.program, args, { cwd: proxy.at, env, stdio: ['ignore', 'ignore', 'pipe'] });
    atEnd(t, () => proxy.program.kill(proxy.constructor.signal));
    await until('the proxy listens', async () => {
      assert.equal(proxy.program.ended, undefined, proxy.program.output);
      return !await isFree(proxy.port);
    });
    return proxy;
  }

  get url() { return `https://127.0.0.1:${this.port}`; }
  get ws() { return `wss://127.0.0.1:${this.port}`; }

  /** Everything that it has logged about requests. */
  async written() {
    const logs = (await readdir(this.at)).filter(name => name.endsWith('.log'));
    const texts = await Promise.all(logs.map(name => readFile(join(this.at, name), 'utf8')));
    return texts.join('') + this.program.output;
  }
}

class Nginx extends Proxy {
  static program = 'nginx';
  // A SIGKILL of its master would leave its workers.
  static signal = 'SIGTERM';
  static skip = isThere('nginx', '-v') ? false : 'needs nginx: apt-get install nginx-light';

  async configure(upstream, timeout) {
    const { at, port } = this;
    const site = replace(await readFile(shipped('nginx.conf'), 'utf8'), [
      ['listen 443 ssl http2;', `listen 127.0.0.1:${port} ssl http2;`],
      ['listen [::]:443 ssl http2;', ''],
      ['server_name sync.example.org;', 'server_name 127.0.0.1;'],
      ['/etc/ssl/certs/sync.example.org.pem', `${at}/cert.pem`],
      ['/etc/ssl/private/sync.example.org.key', `${at}/key.pem`],
      ['/var/log/nginx/', `${at}/`],
      ['http://127.0.0.1:8081', `http://127.0.0.1:${upstream}`],
      ['proxy_read_timeout 5m;', `proxy_read_timeout ${timeout};`],
    ]);
    await writeFile(join(at, 'site.conf'), site);
    const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'];
    await writeFile(join(at, 'nginx.conf'), `
      daemon off;
      pid ${at}/nginx.pid;
      ${process.getuid() === 0 ? 'user root;' : ''}
      error_log stderr warn;
      events { worker_connections 256; }
      http {
        ${temporary.map(name => `${name}_temp_path ${at}/${name};`).join('\n')}
        include ${at}/site.conf;
      }`);
    return ['-e', 'stderr', '-p', at, '-c', join(at, 'nginx.conf')];
  }
}

class Caddy extends Proxy {
  static program = 'caddy';
  // After a SIGTERM it waits for connections.
  static signal = 'SIGKILL';
  static skip = isThere('caddy', 'version') ? false : 'needs caddy: apt-get install caddy';

  async configure(upstream, timeout, tries) {
    const { at, port } = this;
    const file = replace(await readFile(shipped('Caddyfile'), 'utf8'), [
      // Uses neither its admin port nor port 80 of the machine.
      ['\tlog default {', `\tadmin off\n\thttp_port ${await freePort()}\n\tdefault_bind 127.0.0.1\n\tlog default {`],
      ['sync.example.org {', `https://127.0.0.1:${port} {`],
      ['#tls /etc/ssl/certs/sync.example.org.pem /etc/ssl/private/sync.example.org.key', `tls ${at}/cert.pem ${at}/key.pem`],
      ['/var/log/caddy/', `${at}/`],
      ['reverse_proxy 127.0.0.1:8081', `reverse_proxy 127.0.0.1:${upstream}`],
      ['read_timeout 5m', `read_timeout ${timeout}`],
      ['lb_try_duration 15s', `lb_try_duration ${tries}`],
    ]);
    await writeFile(join(at, 'Caddyfile'), file);
    return ['run', '--adapter', 'caddyfile', '--config', join(at, 'Caddyfile')];
  }
}

/**
 * A client that accepts a 502 of a proxy as a browser does. In Node automerge-repo's adapter
 * throws.
 */
function clientOf(t, relay, url) {
  const client = relay.client(t, { url });
  const onError = client.adapter.onError;
  client.adapter.onError = event => {
    if (!/Unexpected server response: 502/.test(event.error?.message)) onError(event);
  };
  return client;
}

const find = async (client, handle) => client.repo.find(handle.url);
const isOpen = client => client.adapter.socket?.readyState === WebSocket.OPEN;

/** The result of a plain WebSocket to `url`: the status of the response, or 101. */
const upgrade = (url, options) => new Promise((resolve, reject) => {
  const socket = new WebSocket(url, options);
  socket.on('upgrade', response => resolve(response.statusCode));
  socket.on('open', () => socket.close());
  socket.on('unexpected-response', (_, response) => { resolve(response.statusCode); socket.terminate(); });
  socket.on('error', reject);
});

for (const Kind of [Nginx, Caddy]) {
  const check = (what, run) => test(`${Kind.program}: ${what}`, { skip: Kind.skip }, run);

  check('documents go both ways, on any path', async t => {
    const relay = await Relay.start(t);
    const proxy = await Kind.start(t, relay.port);
    const root = clientOf(t, relay, proxy.ws);
    const deep = clientOf(t, relay, `${proxy.ws}/some/other/path?room=1`);
    const handle = await share(root, { n: 1 });
    const other = await find(deep, handle);
    assert.deepEqual(other.doc(), { n: 1 });
    other.change(document => { document.m = 2; });
    await until('the way back', () => handle.doc().m === 2);
    await saved(deep, other);
    assert.match(root.adapter.socket.url, /^wss:/);
    const direct = await find(relay.client(t), handle);
    assert.deepEqual(direct.doc(), { n: 1, m: 2 });
  });

  check('compression of messages is negotiated between client and relay alone', async t => {
    const seen = [];
    const upstream = http.createServer().listen(0, '127.0.0.1');
    atEnd(t, () => upstream.close());
    upstream.on('upgrade', (request, socket) => { seen.push(request.headers); socket.end(REFUSAL); });
    await until('it listens', () => upstream.listening);
    const proxy = await Kind.start(t, upstream.address().port);
    assert.equal(await upgrade(`${proxy.ws}/`, { perMessageDeflate: true }), 404);
    assert.match(seen[0]['sec-websocket-extensions'], /permessage-deflate/);
    assert.equal(seen[0].upgrade, 'websocket');
    assert.match(seen[0].connection, /^upgrade$/i);
  });

  check('HTTP/2 for plain requests', async t => {
    const relay = await Relay.start(t);
    const proxy = await Kind.start(t, relay.port);
    const session = http2.connect(proxy.url, { rejectUnauthorized: false });
    atEnd(t, () => session.destroy());
    const stream = session.request({ ':path': '/' });
    stream.setEncoding('utf8');
    let text = '';
    for await (const part of stream) text += part;
    assert.match(text, /Tonk relay server is running/);
    assert.equal(session.alpnProtocol, 'h2');
  });

  check('an idle link outlives the time that the proxy waits, by the relay\'s pings', async t => {
    // A ping is sent after at most two intervals of silence.
    const pinging = await Relay.start(t, { sync: { ping_interval: '"2s"' } });
    // The same without pings.
    const silent = await Relay.start(t, { sync: { ping_interval: '"60s"' } });
    const link = async relay => {
      const client = clientOf(t, relay, (await Kind.start(t, relay.port, { timeout: '8s' })).ws);
      const handle = await share(client, { n: 1 });
      return { client, handle, socket: client.adapter.socket, since: Date.now() };
    };
    const [kept, cut] = await Promise.all([pinging, silent].map(link));
    let cutAfter;
    await until('13 s', () => {
      assert.equal(kept.client.adapter.socket, kept.socket);
      assert.ok(isOpen(kept.client), 'it is open');
      if (cut.socket.readyState !== WebSocket.OPEN) cutAfter ??= Date.now() - cut.since;
      return Date.now() - kept.since > 13_000;
    });
    assert.ok(cutAfter > 6000, `without pings it is cut, and by the proxy: ${cutAfter} ms`);
    kept.handle.change(document => { document.n = 2; });
    await saved(kept.client, kept.handle);
    assert.equal(kept.client.adapter.socket, kept.socket);
  });

  check('a large bundle goes up and comes back as it was', async t => {
    const relay = await Relay.start(t);
    const proxy = await Kind.start(t, relay.port);
    const id = documentId(7);
    const contents = bundle({ [id]: { data: new Uint8Array(randomBytes(20 << 20)) } });
    assert.ok(contents.length > 20 << 20);
    const answer = await fetch(`${proxy.url}/api/bundles`, {
      method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: contents,
    });
    assert.equal(answer.status, 200, await answer.clone().text());
    const back = await fetch(`${proxy.url}/api/bundles/${id}`);
    assert.ok(Buffer.from(contents).equals(Buffer.from(await back.arrayBuffer())));
    const part = await fetch(`${proxy.url}/api/bundles/${id}`, { headers: { range: 'bytes=2-5' } });
    assert.equal(part.status, 206);
    assert.doesNotMatch(await proxy.written(), /buffered to a temporary file/);
  });

  check('an upload reaches the relay as it comes', async t => {
    let came = 0;
    const upstream = http.createServer((request, response) => {
      request.on('data', data => { came += data.length; });
      request.on('end', () => response.end(String(came)));
    }).listen(0, '127.0.0.1');
    atEnd(t, () => upstream.close());
    await until('it listens', () => upstream.listening);
    const proxy = await Kind.start(t, upstream.address().port);
    let finish;
    const body = new ReadableStream({
      start(controller) {
        controller.enqueue(new Uint8Array(1 << 20));
        finish = () => { controller.enqueue(new Uint8Array(1)); controller.close(); };
      },
    });
    const answer = fetch(`${proxy.url}/api/bundles`, { method: 'POST', body, duplex: 'half' });
    await until('the beginning of it', () => came === 1 << 20);
    finish();
    assert.equal(await (await answer).text(), String((1 << 20) + 1));
  });

  check('no token is logged, also while the relay is away', async t => {
    const relay = await Relay.start(t);
    const proxy = await Kind.start(t, relay.port, { tries: '1s' });
    const headers = { referer: 'https://app.example.org/?token=secret' };
    assert.equal((await fetch(`${proxy.url}/livez?token=secret`, { headers })).status, 200);
    assert.equal(await upgrade(`${proxy.ws}/sync?token=secret`), 101);
    await until('the log', async () => /livez[^]*sync|sync[^]*livez/.test(await proxy.written()));
    await relay.kill();
    const away = await fetch(`${proxy.url}/away?token=secret`);
    assert.equal(away.status, 502);
    await until('the log', async () => (await proxy.written()).includes('/away'));
    assert.doesNotMatch(await proxy.written(), /token=|secret/);
  });

  check('a client cannot forge its address', async t => {
    const seen = [];
    const upstream = http.createServer((request, response) => { seen.push(request.headers); response.end(); });
    upstream.on('upgrade', (request, socket) => { seen.push(request.headers); socket.end(REFUSAL); });
    upstream.listen(0, '127.0.0.1');
    atEnd(t, () => upstream.close());
    await until('it listens', () => upstream.listening);
    const proxy = await Kind.start(t, upstream.address().port);
    const headers = { 'x-forwarded-for': '203.0.113.7, 203.0.113.8', forwarded: 'for=203.0.113.7' };
    await fetch(proxy.url, { headers });
    await upgrade(proxy.ws, { headers });
    assert.equal(seen.length, 2);
    for (const { 'x-forwarded-for': address, 'x-forwarded-proto': proto, forwarded } of seen) {
      assert.deepEqual([address, proto, forwarded], ['127.0.0.1', 'https', undefined]);
    }
  });

  check('metrics are not for the world', async t => {
    const relay = await Relay.start(t);
    const proxy = await Kind.start(t, relay.port);
    assert.equal((await fetch(`${relay.url}/metrics`)).status, 200);
    for (const path of ['/metrics', '/metrics?x', '/%6detrics', '//metrics', '/x/../metrics', '/metrics/']) {
      const session = http2.connect(proxy.url, { rejectUnauthorized: false });
      atEnd(t, () => session.destroy());
      // fetch would normalise the path.
      const stream = session.request({ ':path': path });
      const [answer] = await Promise.all([new Promise(resolve => stream.on('response', resolve)), stream.resume()]);
      assert.equal(answer[':status'], 404, path);
    }
  });

  check('clients come back by themselves when the relay restarts', async t => {
    const relay = await Relay.start(t);
    const proxy = await Kind.start(t, relay.port);
    const [one, two] = [clientOf(t, relay, proxy.ws), clientOf(t, relay, proxy.ws)];
    const handle = await share(one, { n: 1 });
    const other = await find(two, handle);
    const closed = new Promise(resolve => one.adapter.socket.addEventListener('close', resolve));
    const ended = await relay.stop();
    assert.equal(ended.code, 0, relay.log);
    assert.equal((await closed).code, 1012);
    handle.change(document => { document.n = 2; });
    await relay.start();
    await until('the edit made meanwhile', () => other.doc().n === 2);
    await until('both have reconnected', () => isOpen(one) && isOpen(two));
    await saved(one, handle);
  });
}

test('caddy: a client that connects while the relay is stopped waits', { skip: Caddy.skip }, async t => {
  const relay = await Relay.start(t);
  const proxy = await Caddy.start(t, relay.port);
  await relay.stop();
  const asked = upgrade(proxy.ws);
  const plain = fetch(`${proxy.url}/livez`);
  await relay.start();
  assert.equal(await asked, 101);
  assert.equal((await plain).status, 200);
});
