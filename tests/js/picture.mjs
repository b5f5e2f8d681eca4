// Draws the status page of a busy relay for the README: node tests/js/picture.mjs OUT.png
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import puppeteer from 'puppeteer-core';
import { freePort } from './prometheus.mjs';
import { Relay, bundle, documentId, folder, share } from './relay.mjs';

const SECONDS = 60;
const [out] = process.argv.slice(2);
const ends = [];
// The parts of a test context that the helpers use.
const t = { after: end => ends.unshift(end) };
const port = await freePort();
const served = join(await folder(t), 'app.tonk');
await writeFile(served, bundle({ [documentId(1)]: { app: true }, [documentId(2)]: { n: 1 } }));
const relay = new Relay(await folder(t), { bundle: { path: `"${served}"` } });
relay.config.admin = { listen: `["unix:${relay.at}/admin.sock", "127.0.0.1:${port}"]` };
t.after(() => relay.end());
await relay.start();
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
t.after(() => browser.close());
const page = await browser.newPage();
await page.setViewport({ width: 1100, height: 1000 });
await page.goto(`http://127.0.0.1:${port}/status`);
const clients = ['anna', 'ben', 'chloe', 'david', 'emma', 'finn'].map(name =>
  relay.client(t, { repo: { peerId: `${name}-laptop` } }));
const handles = await Promise.all(clients.map(client => share(client, { n: 0 })));
const read = clients.flatMap(client => handles.slice(0, 3).map(handle => client.repo.find(handle.url)));
await Promise.all(read);
let n = 0;
const edits = setInterval(() => {
  n += 1;
  // The load varies, so that the charts show something.
  const most = 1 + Math.round(2 + 2 * Math.sin(n / 60));
  for (let i = 0; i < most; i += 1) handles[(n + i) % handles.length].change(doc => { doc.n = n; });
}, 50);
await new Promise(resolve => setTimeout(resolve, SECONDS * 1000));
await page.screenshot({ path: out, clip: { x: 0, y: 0, width: 1100, height: 900 } });
clearInterval(edits);
for (const end of ends) await end();
process.exit(0);
