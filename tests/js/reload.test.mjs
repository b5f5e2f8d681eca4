// A reload as a whole: a changed config takes effect completely or not at all.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import tls from 'node:tls';
import { test } from 'node:test';
import { fails } from './commands.mjs';
import { BINARY, Relay, bundle, documentId, folder, until } from './relay.mjs';
import { joined, sync } from './raw.mjs';

const skip = spawnSync('openssl', ['version']).status === 0 ? false : 'needs openssl';
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
process.removeAllListeners('warning');

/**
 * A bundle, a certificate and a token file, each as `1` and as `2`, and a relay that uses the first
 * of each.
 */
async function start(t) {
  const at = await folder(t);
  const tokens = [];
  for (const n of [1, 2]) {
    const file = join(at, `tokens-${n}`);
    await writeFile(file, '');
    await writeFile(join(at, 'only.toml'), `[auth]\ntokens = "${file}"\n[storage]\npath = "${at}/documents"\n`);
    tokens.push(execFileSync(BINARY, ['token', 'add', `name-${n}`, '--scope', 'sync:write,download,admin', '--config', join(at, 'only.toml')],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim());
    await writeFile(join(at, `app-${n}.tonk`), bundle({ [documentId(n)]: { n } }));
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', `/CN=name-${n}`,
      '-days', '2', '-keyout', join(at, `tls-${n}.key`), '-out', join(at, `tls-${n}.pem`)], { stdio: 'pipe' });
  }
  const relay = await Relay.start(t, {
    bundle: { path: `"${at}/app-1.tonk"` }, tls: { cert: `"${at}/tls-1.pem"`, key: `"${at}/tls-1.key"` },
    auth: { mode: '"token"', tokens: `"${at}/tokens-1"` }, log: { level: '"info"' }, sync: { idle_unload: '"50ms"' }, limits: { connections: '1001' },
  }, at);
  return { relay, tokens, file: join(at, 'tonk-relay.toml') };
}

/** The visible effects of the current config. */
async function observe(t, relay, tokens) {
  const url = `https://127.0.0.1:${relay.port}`;
  const get = (path, token) => fetch(`${url}${path}`, { headers: { authorization: `Bearer ${token}` } });
  const admitted = (await Promise.all(tokens.map(token => get('/metrics', token)))).map(({ status }) => status === 200);
  const token = tokens[admitted.indexOf(true)];
  const metrics = (await (await get('/metrics', token)).text()).split('\n');
  const socket = tls.connect({ port: relay.port, host: '127.0.0.1' });
  await once(socket, 'secureConnect');
  const certificate = socket.getPeerCertificate().subject.CN;
  socket.destroy();
  // Loading a document is logged at the level "debug".
  const before = relay.log.length;
  const session = await joined(t, { ws: url.replace('https', 'wss') }, 'looks', { path: `/?token=${token}` });
  sync(session, documentId(admitted[0] ? 1 : 2));
  await until('an answer', () => session.heard.some(({ type }) => type === 'sync'));
  session.close();
  await until('it is unloaded', async () =>
    (await (await get('/metrics', token)).text()).includes('tonk_relay_rooms{state="live"} 0\n'));
  return {
    admitted, certificate,
    manifest: (await get('/.manifest.tonk', token)).headers.get('etag'),
    bundle: metrics.filter(line => line.startsWith('tonk_relay_bundle_info')),
    connections: metrics.filter(line => line.startsWith('tonk_relay_limit{key="limits.connections"}')),
    debug: / DEBUG /.test(relay.log.slice(before)),
  };
}

test('a reload with a fault in one key changes nothing, and the old config reverts a good one', { skip }, async t => {
  const { relay, tokens, file } = await start(t);
  const first = await readFile(file, 'utf8');
  const changes = [['app-1', 'app-2'], ['tls-1', 'tls-2'], ['tokens-1', 'tokens-2'], ['"info"', '"debug"'], ['= 1001', '= 1002']];
  const changed = text => changes.reduce((text, [from, to]) => text.replaceAll(from, to), text);
  await writeFile(join(relay.at, 'tokens-broken'), 'no tokens');
  const faults = [
    ['bundle.path', /app-\d\.tonk/, 'missing.tonk'], ['tls.cert', /tls-\d\.pem/, 'missing.pem'], ['auth.tokens', /tokens-\d/, 'tokens-broken'],
    ['log.level', /level = .*/, 'level = "x=loud"'], ['sync.peer_id', /idle_unload = .*/, 'peer_id = "other"'],
  ];
  const before = await observe(t, relay, tokens);
  assert.deepEqual(before.admitted, [true, false]);
  for (const [key, from, to] of faults) {
    await writeFile(file, changed(first).replace(from, to));
    const { stderr } = fails(relay, 'reload');
    assert.match(stderr, new RegExp(`: ${key.replace('.', '\\.')}: `));
    assert.deepEqual(await observe(t, relay, tokens), before, `${key} has a fault`);
  }
  await writeFile(file, changed(first));
  relay.command('reload');
  const after = await observe(t, relay, tokens);
  for (const [what, value] of Object.entries(before)) assert.notDeepEqual(after[what], value, `${what} is as it was`);
  await writeFile(file, first);
  relay.command('reload');
  assert.deepEqual(await observe(t, relay, tokens), before);
});
