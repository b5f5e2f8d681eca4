// A benchmark of how long an edit takes from one client to another, before and while the bundle
// store is stalled and clients keep requesting bundles.
//   TONK_RELAY=... WEED=... node tests/js/stall.bench.mjs [SECONDS]
import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { Relay, bundle, close, documentId, share, until, upload } from './relay.mjs';
import { KEYS, Store } from './store.mjs';

/**
 * Requests bundles, and uploads some, ten at a time; on a thread of its own, so that the clients do
 * not wait for it.
 */
async function ask(relay) {
  const root = documentId(1);
  const large = bundle({ [root]: { bytes: new Uint8Array(randomBytes(9 << 20)) } });
  const statuses = {};
  let goes = true;
  parentPort.once('message', () => { goes = false; });
  await Promise.all(Array.from({ length: 10 }, async (_, n) => {
    while (goes) {
      const body = n % 4 ? bundle({ [root]: { n: 2 } }) : large;
      const answer = await (n % 2 ? fetch(`${relay.url}/api/bundles/${root}`) : upload(relay, body));
      statuses[answer.status] = (statuses[answer.status] ?? 0) + 1;
    }
  }));
  parentPort.postMessage(statuses);
}
if (!isMainThread) {
  await ask(workerData);
  process.exit(0);
}

const seconds = Number(process.argv[2] ?? 10);
const PAIRS = 20;
const at = await mkdtemp(join(tmpdir(), 'tonk-relay-bench-'));
const ends = [() => rm(at, { recursive: true, force: true })];
const t = { after: end => ends.unshift(end) };
const store = await Store.start(t);
const relay = new Relay(at, { bundles: store.config({ timeout: '"3s"' }) });
relay.env = { CREDENTIALS_DIRECTORY: at, AWS_EC2_METADATA_DISABLED: 'true' };
await writeFile(join(at, 'aws-credentials'), KEYS);
t.after(() => relay.kill());
await relay.start();
const root = documentId(1);
await until('the store stores', async () => (await upload(relay, bundle({ [root]: { n: 1 } }))).status === 200);

const [writer, reader] = [relay.client(t), relay.client(t)];
const handles = [];
let latencies = [];
for (let n = 0; n < PAIRS; n++) {
  const handle = await share(writer, { at: 0 });
  const there = await reader.repo.find(handle.url);
  there.on('change', ({ doc }) => latencies.push(performance.now() - doc.at));
  handles.push(handle);
}
const measure = async () => {
  latencies = [];
  const end = Date.now() + seconds * 1000;
  for (let n = 0; Date.now() < end; n++) {
    handles[n % PAIRS].change(doc => { doc.at = performance.now(); });
    await new Promise(resolve => setTimeout(resolve, 10));
  }
  latencies.sort((a, b) => a - b);
  return { edits: latencies.length, p50: latencies[latencies.length >> 1], p99: latencies[Math.floor(latencies.length * 0.99)] };
};
const show = (what, { edits, p50, p99 }) =>
  console.log(`${what}  ${edits} edits, p50 ${p50.toFixed(2)} ms, p99 ${p99.toFixed(2)} ms`);

await measure();
const before = await measure();
show('before ', before);
store.stall();
const asking = new Worker(new URL(import.meta.url), { workerData: { url: relay.url } });
const stalled = await measure();
show('stalled', stalled);
asking.postMessage('end');
store.go();
const statuses = await new Promise(resolve => asking.once('message', resolve));
console.log(`p99 ${(stalled.p99 / before.p99).toFixed(2)} times that of before; answers meanwhile: ${JSON.stringify(statuses)}`);
for (const client of [writer, reader]) await close(client);
for (const end of ends) await end();
process.exit(0);
