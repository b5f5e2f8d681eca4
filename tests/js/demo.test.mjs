// `tonk-relay demo`: its page in a real browser, together with `tonk-relay client`; and the client
// with automerge-repo's own server.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';
import { Program } from './program.mjs';
import { freePort } from './prometheus.mjs';
import { BINARY, Relay, atEnd, folder, until } from './relay.mjs';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const skip = spawnSync(CHROMIUM, ['--version']).status === 0 ? false : 'needs Chromium; $CHROMIUM may name it';

/** A program that ends with the test. */
function run(t, command, words, options) {
  const program = new Program(command, words, options);
  atEnd(t, () => program.kill());
  return program;
}

/** A demo, and the addresses that it prints. */
async function demo(t) {
  const program = run(t, BINARY, ['demo', '--listen', '127.0.0.1:0'], { cwd: await folder(t) });
  const [, page, command, status] = await until('the addresses', () =>
    /(http\S*\/demo#\S+)\n.*tonk-relay (client open .*)\n.*(http\S*\/status)\n/.exec(program.output));
  return { page, command: command.split(' '), status, origin: new URL(page).origin };
}

async function open(browser, url) {
  const page = await (await browser.createBrowserContext()).newPage();
  page.faults = [];
  page.on('console', message => { if (message.type() === 'error') page.faults.push(message.text()); });
  page.on('pageerror', error => page.faults.push(String(error)));
  page.on('request', request => {
    if (!request.url().startsWith('data:') && new URL(request.url()).host !== new URL(url).host) page.faults.push(request.url());
  });
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById('saved').textContent === 'saved');
  return page;
}

const shows = (page, id, text) =>
  page.waitForFunction((id, text) => document.getElementById(id).textContent.includes(text), {}, id, text);

test('two windows and a terminal share the list of the demo, and see each other', { skip }, async t => {
  const { page, command, status } = await demo(t);
  const browser = await puppeteer.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
  atEnd(t, () => browser.close());
  const [one, two] = [await open(browser, page), await open(browser, page)];
  await one.type('#text', 'oat milk\n');
  await shows(two, 'todos', 'oat milk');
  await shows(one, 'saved', 'saved');
  await one.$eval('#name', input => { input.value = 'Anna'; input.dispatchEvent(new Event('change')); });
  await shows(two, 'others', 'Anna');

  const terminal = run(t, BINARY, [...command, '--name', 'Chloe']);
  await until('the terminal shows the list', () => terminal.output.includes('oat milk'));
  await until('the terminal sees who is there', () => terminal.output.includes('* Anna is here'));
  await shows(one, 'others', 'Chloe');
  terminal.child.stdin.write('todos += bread\n');
  await shows(one, 'todos', 'bread');
  await shows(two, 'todos', 'bread');
  await two.evaluate(() => [...document.querySelectorAll('#todos li')].find(item => /oat milk/.test(item.textContent)).querySelector('button').click());
  await until('the terminal sees it', () => /\["open[^\]]*"bread"\]\}\n/.test(terminal.output));
  terminal.child.stdin.end();
  assert.equal((await terminal.exited).code, 0, terminal.output);
  await two.waitForFunction(() => !document.getElementById('others').textContent.includes('Chloe'));
  await one.close();
  await shows(two, 'others', 'nobody else');
  assert.deepEqual([...one.faults, ...two.faults], []);

  const statusPage = await browser.newPage();
  await statusPage.goto(status);
  await statusPage.waitForFunction(() => document.getElementById('ready').textContent === 'ready');
});

test('only the demo serves the page', async t => {
  const relay = await Relay.start(t);
  for (const path of ['/demo', '/demo/page.js', '/demo/automerge.wasm']) {
    assert.equal((await fetch(relay.url + path)).status, 404, path);
  }
  const { origin } = await demo(t);
  const licences = await (await fetch(`${origin}/demo/licences.txt`)).text();
  for (const name of ['@automerge/automerge', '@automerge/automerge-repo', 'cbor-x', 'xstate']) {
    assert.match(licences, new RegExp(`^${name} \\d`, 'm'));
  }
});

test('the client works with automerge-repo\'s own server', async t => {
  const port = await freePort();
  const server = run(t, process.execPath, [fileURLToPath(new URL('server.mjs', import.meta.url)), port, await folder(t)]);
  await until('the server listens', () => server.output.includes('listens'));
  const url = ['--url', `ws://127.0.0.1:${port}`];
  const client = run(t, BINARY, ['client', 'new', ...url]);
  client.child.stdin.end('title = Groceries\ntodos = ["milk", {"text": "bread"}]\n');
  assert.equal((await client.exited).code, 0, client.output);
  assert.match(client.output, /^\* saved$/m);
  const id = /^\w{20,}$/m.exec(client.output)[0];
  const reader = spawnSync(BINARY, ['client', 'open', id, ...url], { encoding: 'utf8', input: '' });
  assert.equal(reader.stdout, '{"title":"Groceries","todos":["milk",{"text":"bread"}]}\n', reader.stderr);
});
