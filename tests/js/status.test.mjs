// The status page, in a real browser.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { test } from 'node:test';
import puppeteer from 'puppeteer-core';
import { Postgres, skip as noPostgres } from './postgres.mjs';
import { freePort } from './prometheus.mjs';
import { Relay, atEnd, bundle, close, documentId, folder, saved, share, until } from './relay.mjs';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const skip = spawnSync(CHROMIUM, ['--version']).status === 0 ? false : 'needs Chromium; $CHROMIUM may name it';
const AXE = createRequire(import.meta.url).resolve('axe-core/axe.min.js');

async function browser(t) {
  const browser = await puppeteer.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
  atEnd(t, () => browser.close());
  return browser;
}

/** A relay with a status page and a bundle, and clients that edit `n` documents. */
async function busy(t) {
  const port = await freePort();
  const served = join(await folder(t), 'app.tonk');
  await writeFile(served, bundle({ [documentId(1)]: { app: true }, [documentId(2)]: { n: 1 } }));
  const relay = new Relay(await folder(t), { bundle: { path: `"${served}"` } });
  relay.config.admin = { listen: `["unix:${relay.at}/admin.sock", "127.0.0.1:${port}"]` };
  atEnd(t, () => relay.end());
  await relay.start();
  relay.served = served;
  relay.page = `http://127.0.0.1:${port}/status`;
  return relay;
}

async function open(t, relay, { scheme = 'light', width = 1200, height = 900 } = {}) {
  const page = await (await browser(t)).newPage();
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
  await page.setViewport({ width, height });
  const faults = [], asked = [];
  page.on('console', message => { if (message.type() === 'error') faults.push(message.text()); });
  page.on('pageerror', error => faults.push(String(error)));
  page.on('request', request => { if (!request.url().startsWith('data:')) asked.push(new URL(request.url()).origin); });
  await page.goto(relay.page);
  await page.waitForFunction(() => document.getElementById('ready').textContent === 'ready');
  return { page, faults, asked };
}

const text = (page, selector) => page.$eval(selector, element => element.textContent);

test('the page shows live data, and requests nothing from other servers', { skip }, async t => {
  const relay = await busy(t);
  // Peers choose their own names.
  const client = relay.client(t, { repo: { peerId: '<img src=x onerror="document.title=1">' } });
  const handle = await share(client, { n: 1 });
  const { page, faults, asked } = await open(t, relay);
  assert.match(await text(page, '#cards'), /Connections1/);
  assert.match(await text(page, '#cards'), /Served bundle2 documents/);
  assert.match(await text(page, '#sessions'), /<img src=x/);
  assert.equal(await page.title(), 'tonk-relay');
  const edits = setInterval(() => handle.change(doc => { doc.n += 1; }), 50);
  atEnd(t, () => clearInterval(edits));
  await page.waitForFunction(() => {
    const [figure] = [...document.querySelectorAll('figure')].filter(one => /New changes/.test(one.textContent));
    return figure?.querySelector('polyline') && Number(figure.querySelector('b').textContent) > 1;
  });
  const shown = await text(page, '#documents');
  assert.ok(shown.includes(`${handle.documentId.slice(0, 8)}…`) && !shown.includes(handle.documentId), shown);
  await page.waitForFunction(() => /within\d/.test(document.getElementById('charts').textContent));
  clearInterval(edits);

  await writeFile(relay.served, 'no bundle');
  await page.waitForFunction(() => /degraded: bundle: /.test(document.getElementById('checks').textContent));
  await page.waitForFunction(() => /cannot serve the changed bundle/.test(document.getElementById('log').textContent));
  await saved(client, handle);
  await close(client);
  await relay.stop();
  await page.waitForFunction(() => /no answer/.test(document.getElementById('ready').textContent));
  assert.deepEqual(new Set(asked), new Set([new URL(relay.page).origin]));
  assert.deepEqual(faults.filter(fault => !/ERR_CONNECTION/.test(fault)), []);
});

test('the page is readable in light and dark, narrow and wide, by keyboard and by a screen reader', { skip }, async t => {
  const relay = await busy(t);
  const client = relay.client(t);
  for (let n = 0; n < 8; n += 1) await share(client, { n });
  const paper = {};
  for (const scheme of ['light', 'dark']) {
    for (const width of [320, 1200]) {
      const { page, faults } = await open(t, relay, { scheme, width });
      await page.waitForFunction(() => document.querySelectorAll('#documents tbody tr').length === 8);
      paper[scheme] = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const wider = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wider <= 0, `${wider} pixels too wide at ${width}`);
      await page.addScriptTag({ content: await readFile(AXE, 'utf8') }).catch(() => {});
      const found = await page.evaluate(() => globalThis.axe?.run(document));
      const told = found.violations.map(one => `${one.id}: ${one.nodes.map(node => node.html).join(' ')}`);
      assert.deepEqual(told, [], `${scheme}, ${width}`);
      await page.keyboard.press('Tab');
      const focused = await page.evaluate(() => document.activeElement.getAttribute('aria-label'));
      assert.equal(focused, 'Documents that cost most');
      assert.deepEqual(faults, []);
    }
  }
  assert.notEqual(paper.light, paper.dark);
});

test('the page lists the relays that share a database', { skip: skip || noPostgres }, async t => {
  const alone = await busy(t);
  const { page: own } = await open(t, alone);
  assert.equal(await own.$eval('#group', element => element.hidden), true, 'not where documents are in a folder');

  const postgres = await Postgres.start(t);
  const port = await freePort();
  const named = async (name, more) => {
    const relay = new Relay(await folder(t), postgres.config({ sync: { peer_id: `"${name}"` } }));
    Object.assign(relay.config, more(relay));
    atEnd(t, () => relay.end());
    await relay.start();
    return relay;
  };
  const relay = await named('relay-a', ({ at }) => ({ admin: { listen: `["unix:${at}/admin.sock", "127.0.0.1:${port}"]` } }));
  relay.page = `http://127.0.0.1:${port}/status`;
  const other = await named('<b>relay-b', () => ({}));
  const client = other.client(t);
  await share(client, { n: 1 });
  const { page, faults } = await open(t, relay);
  const rows = () => page.$$eval('#relays tbody tr', all => all.map(row => [...row.children].map(cell => cell.textContent)));
  await until('both are listed, with what the other one does', async () => {
    const [first, second] = await rows();
    return first?.[0] === '<b>relay-b' && first[3] === '1' && second?.[0] === 'relay-a';
  }, 20);
  await page.addScriptTag({ content: await readFile(AXE, 'utf8') }).catch(() => {});
  assert.deepEqual((await page.evaluate(() => globalThis.axe?.run(document))).violations.map(({ id }) => id), []);
  assert.deepEqual(faults, []);
});

test('programs receive JSON, and requests with a host name are refused', async t => {
  const relay = await busy(t);
  const status = await (await fetch(relay.page)).json();
  assert.equal(status.ready, true);
  const asked = host => spawnSync('curl', ['-s', '-o', '/dev/null', '-w', '%{http_code}', '-H', `Host: ${host}`, relay.page],
    { encoding: 'utf8' }).stdout;
  assert.equal(asked('localhost'), '200');
  assert.equal(asked('evil.example'), '403');
  assert.equal((await fetch(`${relay.url}/status`)).status, 404, 'not on the public port');
  const index = await (await fetch(new URL('/', relay.page))).text();
  for (const path of ['/metrics', '/livez', '/readyz?verbose', '/status']) {
    assert.ok(index.includes(`\n${path} `), index);
    assert.equal((await fetch(new URL(path, relay.page))).status, 200, path);
  }
});
