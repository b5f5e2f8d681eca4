// Makes tests/fixtures/VERSION: a storage folder, a backup, a token file and a config that sets every
// key, all written by the relay that $TONK_RELAY names, and expected.json with what is in them.
// formats.test.mjs opens them. Run once, when a version is released:
//   TONK_RELAY=... node tests/js/make-fixtures.mjs
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as Automerge from '@automerge/automerge';
import { plain, printedConfig } from './formats.mjs';
import { BINARY, Relay, bundle, close, documentId, saved, share, until } from './relay.mjs';

const ends = [];
const t = { after: end => ends.push(end) };
const at = await mkdtemp(join(tmpdir(), 'tonk-relay-fixtures-'));
const [, version] = execFileSync(BINARY, ['--version'], { encoding: 'utf8' }).trim().split(' ');
const out = new URL(`../fixtures/${version}/`, import.meta.url).pathname;
await rm(out, { recursive: true, force: true });
await mkdir(out, { recursive: true });

/** The value of a key of the shipped config, changed: what is in quotes or a number grows by one. */
function another(key, value) {
  const named = {
    'http.listen': '["127.0.0.1:18081"]',
    'http.public_url': '"wss://sync.example.org"',
    'http.trusted_proxies': '["10.0.0.0/8", "192.0.2.1"]',
    'http.allowed_origins': '["https://app.example.org"]',
    'tls.cert': '"/etc/tonk-relay.tls/fullchain.pem"',
    'tls.key': '"/etc/tonk-relay.tls/privkey.pem"',
    'admin.listen': '["unix:/run/other/admin.sock"]',
    'bundle.path': '"/srv/app.tonk"',
    'bundle.wasm': '"/srv/core.wasm"',
    'bundle.blank': '"/srv/blank.tonk"',
    'bundles.store': '"s3"',
    'bundles.path': '"/srv/bundles"',
    'bundles.bucket': '"bundles"',
    'bundles.region': '"eu-central-1"',
    'bundles.prefix': '"relay/"',
    'bundles.endpoint_url': '"https://s3.example.org"',
    'storage.path': '"/srv/documents"',
    'storage.durability': '"relaxed"',
    'sync.engine': '"samod"',
    'sync.peer_id': '"relay-1"',
    'sync.forward_requests': '"never"',
    'auth.mode': '"jwt"',
    'auth.tokens': '"/etc/other.tokens"',
    'auth.jwt_keys': '"/etc/keys.jwks"',
    'auth.jwt_issuer': '"https://app.example.org"',
    'auth.jwt_audience': '"tonk-relay"',
    'auth.anonymous': '["download"]',
    'log.level': '"warn,tonk_relay::sync=debug"',
    'log.format': '"json"',
  }[key];
  if (named) return named;
  if (value === 'true' || value === 'false') return String(value === 'false');
  const grown = value.replace(/[\d_]+/, digits => String(Number(digits.replaceAll('_', '')) + 1));
  if (grown === value) throw new Error(`make-fixtures.mjs has no other value for ${key} = ${value}`);
  return grown;
}

/** The shipped config with every key set, to another value than its default. */
async function config() {
  const shipped = await readFile(new URL('../../etc/tonk-relay.toml', import.meta.url), 'utf8');
  let section = '';
  const lines = [`# Every key of tonk-relay ${version}, at another value than its default.`];
  for (const line of shipped.split('\n')) {
    const [, header] = /^\[(\w+)\]$/.exec(line) ?? [];
    if (header) {
      section = `${header}.`;
      lines.push('', line);
    }
    const [, key, value] = /^#(\w+) = (.*?)(?:  # \(R\))?$/.exec(line) ?? [];
    if (key) lines.push(`${key} = ${another(section + key, value)}`);
  }
  return lines.join('\n') + '\n';
}

const file = join(out, 'config.toml');
await writeFile(file, await config());

const tokens = join(out, 'tokens');
await writeFile(join(at, 'tonk-relay.toml'), `[auth]\ntokens = "${tokens}"\n[storage]\npath = "${at}/documents"\n`);
const relay = new Relay(at, {
  auth: { mode: '"token"', tokens: `"${tokens}"` },
  // Nothing moves out of the journal by itself.
  storage: { quiet: '"1h"' },
});
const addToken = (...words) => relay.command('token', 'add', ...words).trim();
const secrets = {
  app: addToken('app', '--scope', 'sync:write,upload,download', '--expires', '36500d'),
  reader: addToken('reader', '--scope', `sync:read:${documentId(1)}`),
  operator: addToken('operator', '--scope', 'admin'),
};

await relay.start();
const client = relay.client(t, { url: `${relay.ws}/?token=${secrets.app}` });
const made = {
  folder: await share(client, {
    text: 'Grüße, 世界', number: 1.5, yes: true, nothing: null, list: [1, [2, { three: 3 }]],
    at: new Date(0), bytes: new Uint8Array([0, 1, 255]), count: new Automerge.Counter(41), raw: new Automerge.RawString('raw'),
  }),
  both: await share(client, { list: [] }),
};
const deleted = await share(client, { n: 'deleted' });
const blocked = await share(client, { n: 'blocked' });
made.folder.change(doc => { doc.count.increment(1); });
await saved(client, made.folder);

// The folders, and what operators have marked.
relay.command('checkpoint');
relay.command('doc', 'delete', deleted.documentId, '--reason', 'asked by its owner');
relay.command('doc', 'block', blocked.documentId, '--reason', 'grows without end');
const { documentId: id } = made.folder;
const broken = join(relay.documents, id.slice(0, 2), id.slice(2), 'incremental');
await mkdir(broken, { recursive: true });
await writeFile(join(broken, 'broken'), 'not a chunk');
const repaired = spawnSync(BINARY, ['fsck', '--repair', '--config', join(at, 'tonk-relay.toml')]);
if (repaired.status !== 1) throw new Error(`fsck --repair: ${repaired.status}`);

// Three generations of a bundle.
const [root, leaf] = [documentId(1), documentId(2)];
const generations = [];
let app = Automerge.from({ app: 'fixture', generation: 0, leaf: `automerge:${leaf}` });
for (let generation = 1; generation <= 3; generation++) {
  app = Automerge.change(app, doc => { doc.generation = generation; });
  const body = bundle({ [root]: app, [leaf]: { text: `generation ${generation}` } });
  const answer = await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', body,
    headers: { 'content-type': 'application/octet-stream', authorization: `Bearer ${secrets.app}` },
  });
  if (!answer.ok) throw new Error(`upload: ${answer.status} ${await answer.text()}`);
  generations.push(createHash('sha256').update(body).digest('hex'));
}

relay.command('backup', join(at, 'backup'));
const inBackup = { folder: plain(made.folder.doc()), both: plain(made.both.doc()) };
// The times at which tokens were used are written by now and then, and at the end.
await close(client);
await relay.restart();

// In the journal, as a crash leaves it.
const again = relay.client(t, { url: `${relay.ws}/?token=${secrets.app}` });
const both = await again.repo.find(made.both.url);
for (let n = 0; n < 5; n++) both.change(doc => { doc.list.push(n); });
await saved(again, both);
made.both = both;
made.journal = await share(again, { text: 'in the journal only' });
const storageId = await until('the storage id', () =>
  Object.values(again.repo.peerMetadataByPeerId).find(peer => peer?.storageId)?.storageId);
await relay.kill();

const documents = Object.fromEntries(Object.entries(made).map(([name, handle]) => [name, {
  id: handle.documentId, heads: Automerge.getHeads(handle.doc()), contents: plain(handle.doc()), backup: inBackup[name],
}]));
await close(again);
for (const end of ends) await end();
const expected = {
  version, storageId, tokens: secrets, documents,
  deleted: { id: deleted.documentId, reason: 'asked by its owner' },
  blocked: { id: blocked.documentId, reason: 'grows without end' },
  quarantined: `${id.slice(0, 2)}/${id.slice(2)}/incremental/broken`,
  bundle: { root, leaf, generations },
  config: printedConfig(file),
};
await writeFile(join(out, 'expected.json'), JSON.stringify(expected, null, 1) + '\n');
execFileSync('tar', [
  '--create', '--gzip', '--sort=name', '--owner=0', '--group=0', '--numeric-owner', '--file', join(out, 'stored.tar.gz'),
  // It only holds disk space.
  '--exclude=.reserve', '--directory', at, 'documents', 'bundles', 'backup',
]);
await rm(at, { recursive: true });
process.exit(0);
