// What app.md shows, as an app developer runs it: the todo page in Chromium, its backend, and bundles.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';
import { Program } from './program.mjs';
import { freePort } from './prometheus.mjs';
import { BINARY, Relay, atEnd, folder, until } from './relay.mjs';

const CHROMIUM = process.env.CHROMIUM ?? '/usr/bin/chromium';
const skip = spawnSync(CHROMIUM, ['--version']).status === 0 ? false : 'needs Chromium; $CHROMIUM may name it';
const EXAMPLES = fileURLToPath(new URL('../../packaging/examples', import.meta.url));
const MODULES = fileURLToPath(new URL('node_modules', import.meta.url));
/** Seconds until a token expires. The relay allows for clocks that differ by 10 seconds, so these last 7. */
const TOKEN_SECONDS = '-3';

/** The code block of a document that begins with a text. */
async function block(first, document = 'packaging/doc/app.md') {
  const text = await readFile(new URL(`../../${document}`, import.meta.url), 'utf8');
  const found = text.split('```').find((part, index) => index % 2 === 1 && part.split('\n')[1].startsWith(first));
  assert.ok(found, `${document} has a block that begins with ${first}`);
  return found.slice(found.indexOf('\n') + 1);
}

/** A program that ends with the test. */
function run(t, command, words, options) {
  const program = new Program(command, words, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
  program.says = text => until(`${command} says ${text}`, () => {
    const hasSaid = program.output.includes(text);
    if (program.ended && !hasSaid) throw new Error(`${command} ended: ${program.output}`);
    return hasSaid;
  });
  atEnd(t, () => program.kill('SIGTERM'));
  return program;
}

/** A folder with the todo app, a relay with the config of app.md, and the backend. */
async function todo(t) {
  const at = join(await folder(t), 'todo');
  await cp(join(EXAMPLES, 'todo'), at, { recursive: true });
  await symlink(MODULES, join(at, 'node_modules'));
  const port = { page: await freePort(), relay: await freePort() };
  const app = { at, url: `http://127.0.0.1:${port.page}` };
  execFileSync('npm', ['run', '--silent', 'build'], { cwd: at, stdio: 'pipe' });
  const served = { ...process.env, PORT: port.page, RELAY: `ws://127.0.0.1:${port.relay}`, TOKEN_SECONDS };
  await run(t, 'node', ['backend.mjs'], { cwd: at, env: served }).says(`open ${app.url}/?user=anna`);
  await mkdir(join(at, 'bin'));
  await symlink(BINARY, join(at, 'bin/tonk-relay'));
  const script = (await block('cat > relay.toml <<END'))
    .replace('<<END\n', `<<END\n[http]\nlisten = ["127.0.0.1:${port.relay}"]\n`)
    .replace(/^tonk-relay/m, 'exec tonk-relay');
  const env = { ...process.env, PATH: `${join(at, 'bin')}:${process.env.PATH}` };
  app.relay = run(t, 'bash', ['-euc', script], { cwd: at, env });
  await app.relay.says(' ready ');
  const browser = await puppeteer.launch({ executablePath: CHROMIUM, args: ['--no-sandbox', '--disable-gpu'] });
  atEnd(t, () => browser.close());
  /** A window of its own, as another person has it. */
  app.open = async (user, hash = '') => {
    const page = await (await browser.createBrowserContext()).newPage();
    await page.goto(`${app.url}/?user=${user}${hash}`);
    return page;
  };
  return app;
}

/** Waits until an element of a page has a text. */
const shows = (page, selector, pattern) => until(`${selector} shows ${pattern}`, async () =>
  pattern.test(await page.$eval(selector, element => element.textContent)));

async function add(page, text) {
  await page.type('#new', text);
  await page.keyboard.press('Enter');
}

test('people share a todo list, and see who is there, what is saved, who may only read, and why the relay refuses them', { skip }, async t => {
  const app = await todo(t);
  const anna = await app.open('anna');
  await shows(anna, '#state', /^anna: saved$/);
  const { hash } = new URL(anna.url());
  const [ben, guest] = await Promise.all([app.open('ben', hash), app.open('guest', hash)]);
  await shows(guest, '#state', /^guest: read only, saved$/);
  await shows(ben, '#state', /^ben: saved$/);

  await add(anna, 'milk');
  for (const page of [ben, guest]) await shows(page, '#list', /^☐ milk$/);
  for (const page of [anna, ben, guest]) await shows(page, '#state', /saved$/);
  await ben.click('#list button');
  await shows(anna, '#list', /^☑ milk$/);
  await shows(anna, '#others', /ben/);
  await shows(anna, '#others', /guest/);
  await shows(ben, '#others', /anna/);
  assert.deepEqual(await guest.$$eval('input, button', all => all.map(one => one.disabled)), [true, true]);

  await app.relay.says('the token has expired');
  for (const page of [anna, ben, guest]) await shows(page, '#problem', /^$/);
  await add(ben, 'bread');
  await shows(anna, '#list', /bread$/);
  await shows(anna, '#state', /^anna: saved$/);

  const stranger = await app.open('mallory', hash);
  await shows(stranger, '#problem', /^no session: 403 mallory may not open this document$/);
  // From now on the relay knows another key than the backend's.
  await writeFile(join(app.at, 'public.pem'), generateKeyPairSync('ed25519').publicKey.export({ type: 'spki', format: 'pem' }));
  // The page then asks for a new token, and shows why that fails instead.
  await shows(anna, '#problem', /^(disconnected: 4401|no session: 401) the token is not valid: its signature does not match any key in auth.jwt_keys/);
});

test('the shortest programs of README.md and app.md run in Node.js', async t => {
  const relay = await Relay.start(t);
  const at = await folder(t);
  await symlink(MODULES, join(at, 'node_modules'));
  for (const [first, document, output] of [['// app.mjs', 'README.md', 'buy milk'], ['import { Repo }', 'packaging/doc/app.md', "[ 'milk' ]"]]) {
    const program = await block(first, document);
    await writeFile(join(at, 'connect.mjs'), program.replace('ws://127.0.0.1:8081', relay.ws));
    await run(t, 'node', ['connect.mjs'], { cwd: at }).says(output);
  }
  await until('the relay has both documents', async () => await relay.metric('tonk_relay_rooms{state="live"}') === 2);
});

test('a bundle that a program makes as app.md shows it is stored, and its documents can be found', async t => {
  const relay = await Relay.start(t);
  const at = await folder(t);
  await cp(join(EXAMPLES, 'bundle.mjs'), join(at, 'bundle.mjs'));
  await symlink(MODULES, join(at, 'node_modules'));
  const root = execFileSync('node', ['bundle.mjs'], { cwd: at, encoding: 'utf8' }).trim();
  const upload = (await block('curl -sS --data-binary @app.tonk')).replace('http://127.0.0.1:8081', relay.url);
  const answer = JSON.parse(execFileSync('bash', ['-euc', upload], { cwd: at, encoding: 'utf8' }));
  assert.deepEqual([answer.id, answer.imported.new], [root, 2]);
  const client = relay.client(t);
  const { notes } = (await client.repo.find(`automerge:${root}`)).doc();
  assert.equal((await client.repo.find(notes)).doc().text, 'Written by bundle.mjs');
});
