// Starts the real relay for a test, and clients of automerge-repo that connect to it.
import { execFileSync } from 'node:child_process';
import { mkdtemp, mkdir, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as Automerge from '@automerge/automerge';
import { Repo, parseAutomergeUrl, stringifyAutomergeUrl } from '@automerge/automerge-repo';
import { WebSocketClientAdapter } from '@automerge/automerge-repo-network-websocket';
import { NodeFSStorageAdapter } from '@automerge/automerge-repo-storage-nodefs';
import { strToU8, zipSync } from 'fflate';
import { Program } from './program.mjs';

export const BINARY = process.env.TONK_RELAY;
if (!BINARY) throw new Error('TONK_RELAY must name the relay to test; tests/run sets it');

/** Waits until `condition` returns a truthy value, and returns it. */
export async function until(what, condition, seconds = 20) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}`);
    await new Promise(resolve => setTimeout(resolve, 20));
  }
}

const endings = new WeakMap();

/**
 * Calls `end` at the end of the test. What was started last ends first, because it may need what was
 * started before; Node's own `after` keeps the order of the calls.
 */
export function atEnd(t, end) {
  if (!endings.has(t)) {
    endings.set(t, []);
    t.after(async () => {
      const failures = [];
      for (const end of endings.get(t).reverse()) {
        try { await end(); } catch (error) { failures.push(error); }
      }
      if (failures.length) throw failures[0];
    });
  }
  endings.get(t).push(end);
}

/** A folder that is deleted at the end of the test. */
export async function folder(t) {
  const path = await mkdtemp(join(tmpdir(), 'tonk-relay-test-'));
  atEnd(t, () => rm(path, { recursive: true, force: true, maxRetries: 5 }));
  return path;
}

/** automerge-repo's storage in a folder that something else reads while the repo is open. */
export class SharedFolder extends NodeFSStorageAdapter {
  #writes = new Set();

  save(key, data) {
    const write = super.save(key, data).finally(() => this.#writes.delete(write));
    this.#writes.add(write);
    return write;
  }

  /**
   * Saves all documents of its repo. `Repo.flush` alone may leave a write of the same file under
   * way, which the repo's timer has begun, and the file is empty for a moment.
   */
  async flush(repo) {
    await repo.flush();
    await Promise.all(this.#writes);
  }
}

/**
 * A folder on a small disk of its own. Where none can be mounted, skips the test and returns
 * nothing.
 */
export async function smallDisk(t, mib) {
  if (process.getuid() !== 0) return t.skip('needs root, to mount a small disk');
  const at = await mkdtemp(join(tmpdir(), 'tonk-relay-disk-'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${mib}m`, 'tmpfs', at]);
  atEnd(t, async () => {
    execFileSync('umount', ['--lazy', at]);
    await rm(at, { recursive: true });
  });
  return at;
}

/** Fills a disk to its last byte. Returns the file to delete. */
export async function fill(at) {
  const ballast = join(at, 'ballast');
  const file = await open(ballast, 'w');
  try {
    for (let size = 1 << 20; size > 0;) {
      const { bytesWritten } = await file.write(Buffer.alloc(size)).catch(() => ({ bytesWritten: 0 }));
      if (bytesWritten === 0) size >>= 1;
    }
  } finally {
    await file.close();
  }
  return ballast;
}

/** The numbers of a user of this machine. */
export function ids(user) {
  const number = what => Number(execFileSync('id', [what, user], { encoding: 'utf8' }));
  return { uid: number('-u'), gid: number('-g') };
}

/**
 * A relay with storage in `at`. `config` is appended to the config file: `{ sync: { idle_unload: '"1s"' } }`.
 * The port stays the same after a restart.
 */
export class Relay {
  constructor(at, config = {}) {
    this.at = at;
    this.config = config;
    this.port = 0;
    this.clients = [];
  }

  static async start(t, config, at) {
    const relay = new Relay(at ?? await folder(t), config);
    atEnd(t, () => relay.end());
    await relay.start();
    return relay;
  }

  get child() { return this.program?.child; }
  get log() { return this.program?.output ?? ''; }
  get exited() { return this.program?.exited; }
  get ended() { return this.program?.ended; }
  get documents() { return join(this.at, 'documents'); }
  get url() { return `http://127.0.0.1:${this.port}`; }
  get ws() { return `ws://127.0.0.1:${this.port}`; }

  /** Writes the config file, and returns its path. */
  async writeConfig() {
    const sections = structuredClone(this.config);
    const set = (section, key, value) => (sections[section] ??= {})[key] ??= value;
    set('http', 'listen', `["127.0.0.1:${this.port}"]`);
    set('admin', 'listen', `["unix:${this.at}/admin.sock"]`);
    set('storage', 'path', `"${this.documents}"`);
    // Independent of the disk that the tests run on.
    set('storage', 'min_free', '"1B"');
    set('bundles', 'path', `"${this.at}/bundles"`);
    const { drain_timeout, ...named } = sections;
    let text = drain_timeout ? `drain_timeout = ${drain_timeout}\n` : '';
    for (const [section, keys] of Object.entries(named)) {
      text += `[${section}]\n` + Object.entries(keys).map(([k, v]) => `${k} = ${v}\n`).join('');
    }
    const file = join(this.at, 'tonk-relay.toml');
    await mkdir(this.at, { recursive: true });
    await writeFile(file, text);
    return file;
  }

  async start() {
    const file = await this.writeConfig();
    const options = { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, ...this.env }, ...this.as };
    this.program = new Program(this.binary ?? BINARY, ['--config', file], options);
    await until('the relay is ready', () => {
      if (this.ended) throw new Error(`the relay ended: ${JSON.stringify(this.ended)}\n${this.log}`);
      return this.log.includes(' ready ');
    });
    this.port = Number(/listening on https?:\/\/\S*:(\d+)/.exec(this.log)[1]);
  }

  /** Sends SIGTERM. Returns how it ended and how long it took. */
  async stop() {
    const start = Date.now();
    this.child.kill('SIGTERM');
    const ended = await this.exited;
    return { ...ended, seconds: (Date.now() - start) / 1000 };
  }

  async kill() {
    await this.program?.kill();
  }

  /** Its clients are closed first: a client that is reconnecting while it is closed throws. */
  async end() {
    await Promise.all(this.clients.map(close));
    await this.kill();
  }

  async restart() {
    const ended = await this.stop();
    await this.start();
    return ended;
  }

  /** The output of a sub-command. */
  command(...words) {
    return execFileSync(BINARY, [...words, '--config', join(this.at, 'tonk-relay.toml')], { encoding: 'utf8' });
  }

  /**
   * The value of a metric, with its labels in the order of the text format; 0 if it does not exist
   * yet.
   */
  async metric(name) {
    const text = await (await fetch(`${this.url}/metrics`, { headers: this.headers })).text();
    const line = text.split('\n').find(line => line.startsWith(`${name} `));
    return line ? Number(line.slice(name.length + 1)) : 0;
  }

  /**
   * A client of automerge-repo, closed at the end of the test. With `strict` its errors are not
   * caught.
   */
  client(t, options = {}) {
    const adapter = new WebSocketClientAdapter(options.url ?? this.ws, options.retry ?? 200);
    if (!options.strict) {
      // automerge-repo 2.5.6 throws in a timer when it sends on a socket that is closing. The
      // message is sent after the reconnect. It also throws when a relay that is stopping resets a
      // connection.
      const onError = adapter.onError;
      adapter.onError = event => { if (event.error?.code !== 'ECONNRESET') onError(event); };
      const send = adapter.send.bind(adapter);
      adapter.send = message => {
        try { send(message); } catch (error) { if (!/Websocket not ready/.test(error.message)) throw error; }
      };
    }
    // Before it reconnects, or when it is closed, it removes its listeners from a socket that may
    // still be connecting. An error without a listener would end Node.
    const connect = adapter.connect.bind(adapter);
    adapter.connect = (...words) => {
      connect(...words);
      adapter.socket?.addEventListener('error', () => {});
    };
    const repo = new Repo({ network: [adapter], ...options.repo });
    const client = { repo, adapter };
    this.clients.push(client);
    atEnd(t, () => close(client));
    return client;
  }
}

/** Closes a client, once. Otherwise its adapter keeps reconnecting, and Node does not exit. */
export async function close(client) {
  if (client.closed) return;
  client.closed = true;
  const patience = new Promise(resolve => setTimeout(resolve, 2000).unref());
  await Promise.race([client.repo.shutdown(), patience]);
}

/** A new document of a client, once the relay has it. */
export async function share(client, contents) {
  const handle = client.repo.create(contents);
  await saved(client, handle);
  return handle;
}

/** Waits until the relay has reported that it has stored the whole document of a handle. */
export async function saved(client, handle) {
  const storageId = await until('the handshake', () => {
    const peers = Object.values(client.repo.peerMetadataByPeerId);
    return peers.find(peer => peer?.storageId)?.storageId;
  });
  await until('the relay has it', () => {
    const info = handle.getSyncInfo(storageId);
    return info && JSON.stringify([...info.lastHeads].sort()) === JSON.stringify([...handle.heads()].sort());
  });
}

/** A document id of these bytes, or of bytes that are all `n`. */
export function documentId(n) {
  const bytes = typeof n === 'number' ? new Uint8Array(16).fill(n) : n;
  return parseAutomergeUrl(stringifyAutomergeUrl({ documentId: bytes })).documentId;
}

/** The name of a document's entry in a bundle. */
export const entry = id => `storage/${id.slice(0, 2)}/${id.slice(2)}/snapshot/bundle_export`;

/** Uploads a bundle to a relay. */
export const upload = (relay, body) => fetch(`${relay.url}/api/bundles`, {
  method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body,
});

/**
 * A bundle of documents, `{ [id]: plain object or automerge document }`, of which the first is the
 * root; and of further entries.
 */
export function bundle(documents, manifest = {}, more = {}) {
  const rootId = Object.keys(documents)[0];
  const files = {
    'manifest.json': strToU8(JSON.stringify({
      manifestVersion: 1, version: { major: 1, minor: 0 }, rootId,
      entrypoints: [], networkUris: [], xNotes: null, xVendor: null, ...manifest,
    })),
  };
  for (const [id, contents] of Object.entries(documents)) {
    files[entry(id)] = Automerge.save(Automerge.isAutomerge(contents) ? contents : Automerge.from(contents));
  }
  return zipSync({ ...files, ...more }, { mtime: new Date(1980, 0, 1) });
}
