// A benchmark of the relay's memory during many large uploads and downloads:
//   TONK_RELAY=... [WEED=...] node tests/js/bundles.bench.mjs [COUNT] [MB]
// With WEED the bundles are in a real object store, otherwise in a local folder.
import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createReadStream } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { request } from 'node:http';
import * as Automerge from '@automerge/automerge';
import { zipSync, strToU8 } from 'fflate';
import { Relay, documentId, entry } from './relay.mjs';
import { KEYS, Store } from './store.mjs';

const [count, megabytes] = [Number(process.argv[2] ?? 20), Number(process.argv[3] ?? 100)];
const SMALL = 8_000;
const at = await mkdtemp(join(tmpdir(), 'tonk-relay-bench-'));
const ends = [() => rm(at, { recursive: true, force: true })];
const t = { after: end => ends.unshift(end) };

/** A bundle of small documents with a new root document. */
const files = {};
for (let n = 0; n < megabytes * 1e6 / SMALL; n++) {
  const id = new Uint8Array(16);
  new DataView(id.buffer).setUint32(4, n + 1000);
  const doc = Automerge.from({ n, bytes: new Uint8Array(randomBytes(SMALL - 150)) });
  files[entry(documentId(id))] = [Automerge.save(doc), { level: 0 }];
}

const paths = [];
for (let n = 0; n < count; n++) {
  const rootId = documentId(n + 1);
  const manifest = { manifestVersion: 1, version: { major: 1, minor: 0 }, rootId, entrypoints: [], networkUris: [] };
  const zip = zipSync({
    'manifest.json': strToU8(JSON.stringify(manifest)),
    [entry(rootId)]: Automerge.save(Automerge.from({ n })), ...files,
  });
  paths.push([rootId, join(at, `${n}.tonk`), zip.length]);
  await writeFile(join(at, `${n}.tonk`), zip);
}

const store = process.env.WEED ? await Store.start(t) : undefined;
const relay = new Relay(join(at, 'relay'), { bundles: { max_upload: '"200MB"', max_inflated: '"400MB"', ...store?.config({ timeout: '"30s"' }) } });
relay.env = { CREDENTIALS_DIRECTORY: at, AWS_EC2_METADATA_DISABLED: 'true' };
await writeFile(join(at, 'aws-credentials'), KEYS);
t.after(() => relay.kill());
await relay.start();
const status = async () => readFile(`/proc/${relay.child.pid}/status`, 'utf8');
const peak = async () => Number(/VmHWM:\s+(\d+)/.exec(await status())[1]) / 1024;
const rss = async () => Number(/VmRSS:\s+(\d+)/.exec(await status())[1]) / 1024;

const send = ([, path, size]) => new Promise((resolve, reject) => {
  const headers = { 'content-type': 'application/octet-stream', 'content-length': size };
  const sending = request(`${relay.url}/api/bundles`, { method: 'POST', headers }, answer => {
    let text = '';
    answer.on('data', data => { text += data; });
    answer.on('end', () => resolve([answer.statusCode, text]));
  });
  sending.on('error', reject);
  createReadStream(path).pipe(sending);
});
const download = ([id]) => new Promise((resolve, reject) => {
  request(`${relay.url}/api/bundles/${id}`, answer => {
    let size = 0;
    answer.on('data', data => { size += data.length; });
    answer.on('end', () => resolve([answer.statusCode, size]));
    answer.on('error', reject);
  }).on('error', reject).end();
});
/** Retries as a client does that is told to. */
const withRetries = async (what, one) => {
  for (;;) {
    const [status, answer] = await one(what);
    if (status === 200) return answer;
    if (status !== 503) throw new Error(`${status} ${answer}`);
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
};

console.log(`${count} bundles of ${(paths[0][2] / 1e6).toFixed(0)} MB, ${Object.keys(files).length} documents each, ${store ? 's3' : 'folder'}`);
console.log(`rest      ${(await rss()).toFixed(0)} MiB`);
let began = Date.now();
await withRetries(paths[0], send);
console.log(`one up    ${((Date.now() - began) / 1000).toFixed(1)} s, peak ${(await peak()).toFixed(0)} MiB`);
began = Date.now();
await Promise.all(paths.map(path => withRetries(path, send)));
console.log(`all up    ${((Date.now() - began) / 1000).toFixed(1)} s, peak ${(await peak()).toFixed(0)} MiB`);
began = Date.now();
await Promise.all(paths.flatMap(path => [withRetries(path, send), withRetries(path, download)]));
console.log(`up, down  ${((Date.now() - began) / 1000).toFixed(1)} s, peak ${(await peak()).toFixed(0)} MiB, then ${(await rss()).toFixed(0)} MiB`);
for (const end of ends) await end();
process.exit(0);
