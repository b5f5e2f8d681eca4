// A real object store for the tests of uploaded bundles: SeaweedFS.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import net, { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { atEnd, folder, until } from './relay.mjs';

const WEED = process.env.WEED;
/** Why tests that need it are skipped. */
export const skip = WEED ? false : 'needs SeaweedFS; tests/run installs it';
export const KEYS = '[default]\naws_access_key_id = AKIATEST\naws_secret_access_key = a-secret-of-the-test\n';

const isFree = port => new Promise(resolve => {
  const server = createServer();
  server.once('error', () => resolve(false));
  server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
});

/** A port for the store, which also uses the next three, and those 10,000 above these. */
async function freePort() {
  for (;;) {
    // Outside the kernel's range of ephemeral ports.
    const port = 15_000 + Math.floor(Math.random() * 7_000);
    const all = [0, 1, 2, 3].flatMap(n => [port + n, port + n + 10_000]);
    if ((await Promise.all(all.map(isFree))).every(Boolean)) return port;
  }
}

/** A real store with a bucket. */
export class Store {
  static async start(t) {
    const store = new Store();
    store.at = await folder(t);
    store.port = await freePort();
    const script = fileURLToPath(new URL('seaweed.sh', import.meta.url));
    const options = { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] };
    store.pid = Number(execFileSync(script, [WEED, store.at, String(store.port)], options));
    atEnd(t, () => process.kill(store.pid, 'SIGKILL'));
    await until('the store has a bucket', () => {
      try {
        store.shell('s3.bucket.create -name bundles');
        return store.shell('s3.bucket.list').includes('bundles');
      } catch { return false; }
    });
    return store;
  }

  shell(command) {
    const options = { input: `${command}\n`, encoding: 'utf8', stdio: ['pipe', 'pipe', 'ignore'] };
    return execFileSync(WEED, ['shell', `-master=127.0.0.1:${this.port + 1}`], options);
  }

  /** The names of the objects below a folder of the bucket. */
  list(below) {
    const lines = this.shell(`fs.ls /buckets/bundles/${below}`).split('\n');
    return lines.map(line => line.replace(/^>?\s*/, '').trim()).filter(line => line.endsWith('.tonk'));
  }

  /** The multipart uploads that are neither completed nor aborted. */
  uploads() {
    try {
      return this.shell('fs.ls /buckets/bundles/.uploads').split('\n').map(line => line.replace(/^>?\s*/, '').trim())
        .filter(line => /^[0-9a-f]{32,}/.test(line));
    } catch { return []; }
  }

  stall() { process.kill(this.pid, 'SIGSTOP'); }
  go() { process.kill(this.pid, 'SIGCONT'); }

  config(more = {}) {
    return {
      store: '"s3"', bucket: '"bundles"', region: '"us-east-1"', prefix: '"apps/"', path_style: 'true',
      endpoint_url: `"http://127.0.0.1:${this.port}"`, timeout: '"2s"', ...more,
    };
  }
}

const RCLONE = process.env.RCLONE;
/** Why tests that need it are skipped. */
export const skipRclone = RCLONE ? false : 'needs rclone; tests/run installs it';

/**
 * Another real store, which answers conditional writes with 200 and ignores the condition: rclone
 * in front of a folder.
 */
export class Rclone extends Store {
  static async start(t) {
    const store = new Rclone();
    store.at = await folder(t);
    store.port = await freePort();
    await mkdir(join(store.at, 'bundles'));
    const keys = KEYS.match(/(?<== ).*/g).join();
    const words = ['serve', 's3', store.at, '--addr', `127.0.0.1:${store.port}`, '--auth-key', keys, '--config', ''];
    const child = spawn(RCLONE, words, { stdio: 'ignore' });
    store.pid = child.pid;
    atEnd(t, () => child.kill('SIGKILL'));
    await until('the store answers', () => fetch(`http://127.0.0.1:${store.port}`).then(() => true, () => false));
    return store;
  }

  list(below) {
    const at = join(this.at, 'bundles', below);
    return existsSync(at) ? readdirSync(at).filter(name => name.endsWith('.tonk')) : [];
  }
}

/**
 * A line to a store that can be cut. `left` is how many bytes of responses it still carries; a request
 * with `cutAt` cuts it. While it `holds`, responses are lost, and so are those after `holdsAfter` bytes.
 */
export async function line(t, store) {
  const line = { left: Infinity };
  const server = net.createServer(client => {
    const there = net.connect(store.port, '127.0.0.1');
    client.on('data', data => {
      if (line.cutAt && data.includes(line.cutAt)) line.left = 0;
      if (line.left > 0) there.write(data);
      else end();
    });
    client.on('end', () => there.end());
    there.on('data', data => {
      if (line.holds) return;
      if (line.holdsAfter !== undefined) {
        client.write(data.subarray(0, line.holdsAfter));
        line.holdsAfter -= data.length;
        line.holds = line.holdsAfter <= 0;
        return;
      }
      client.write(data.subarray(0, line.left));
      line.left = Math.max(0, line.left - data.length);
      if (line.left === 0) end();
    });
    const end = () => { client.end(); there.destroy(); };
    for (const socket of [client, there]) { socket.on('close', end); socket.on('error', end); }
  });
  await new Promise(resolve => server.listen(0, '127.0.0.1', resolve));
  atEnd(t, () => server.close());
  line.port = server.address().port;
  return line;
}
