// What earlier versions have written is opened, and what later versions will write is refused by name.
// tests/fixtures has a folder for each released version; make-fixtures.mjs writes it.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFile, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { fails, json, url } from './commands.mjs';
import { plain, printedConfig } from './formats.mjs';
import { BINARY, Relay, atEnd, folder } from './relay.mjs';

const FIXTURES = new URL('../fixtures/', import.meta.url).pathname;
const versions = await readdir(FIXTURES);
assert.ok(versions.length > 0);

/** A copy of what a version has stored, and a relay, not started, that uses it. */
async function stored(t, version) {
  const at = await folder(t);
  const fixture = join(FIXTURES, version);
  execFileSync('tar', ['--extract', '--gzip', '--no-same-owner', '--file', join(fixture, 'stored.tar.gz'), '--directory', at]);
  const tokens = join(at, 'tokens');
  await copyFile(join(fixture, 'tokens'), tokens);
  const expected = JSON.parse(await readFile(join(fixture, 'expected.json')));
  const relay = new Relay(at, { auth: { mode: '"token"', tokens: `"${tokens}"` } });
  atEnd(t, () => relay.end());
  const client = () => relay.client(t, { url: `${relay.ws}/?token=${expected.tokens.app}` });
  return { at, relay, client, expected, backup: join(at, 'backup') };
}

const sha256 = data => createHash('sha256').update(data).digest('hex');

for (const version of versions) {
  test(`the storage folder and the tokens of ${version}, after a crash`, async t => {
    const { at, relay, client, expected } = await stored(t, version);
    await relay.start();
    const { repo } = client();
    for (const [name, { id, heads, contents }] of Object.entries(expected.documents)) {
      const handle = await repo.find(url(id));
      assert.deepEqual(plain(handle.doc()), contents, name);
      assert.deepEqual(Automerge.getHeads(handle.doc()), heads, name);
    }
    assert.equal(Object.values(repo.peerMetadataByPeerId)[0].storageId, expected.storageId);
    await assert.rejects(repo.find(url(expected.deleted.id)), /unavailable/);
    assert.match(fails(relay, 'doc', expected.deleted.id).stderr, new RegExp(expected.deleted.reason));
    await assert.rejects(repo.find(url(expected.blocked.id)), /unavailable/);
    const [{ document, reason }] = json(relay, 'doc', 'blocked');
    assert.deepEqual({ id: document, reason }, expected.blocked);
    assert.deepEqual(json(relay, 'quarantine', 'list').map(({ path }) => path), [expected.quarantined]);

    const { root, leaf, generations } = expected.bundle;
    const headers = { authorization: `Bearer ${expected.tokens.app}` };
    const bundle = await (await fetch(`${relay.url}/api/bundles/${root}`, { headers })).arrayBuffer();
    assert.equal(sha256(Buffer.from(bundle)), generations.at(-1));
    assert.deepEqual((await readdir(join(at, 'bundles/former', root))).sort(),
      generations.slice(0, -1).map(name => `${name}.tonk`).sort());
    assert.equal((await repo.find(url(root))).doc().generation, generations.length, 'its documents are imported');
    assert.ok((await repo.find(url(leaf))).doc());

    const tokens = json(relay, 'token', 'list');
    assert.deepEqual(tokens.map(({ name }) => name), Object.keys(expected.tokens));
    assert.ok(tokens.find(({ name }) => name === 'app').last_used, 'when a token was used is known');
    const asks = await fetch(`${relay.url}/metrics`, { headers: { authorization: `Bearer ${expected.tokens.reader}` } });
    assert.equal(asks.status, 403, 'its scopes hold');
    assert.equal((await relay.stop()).code, 0);
    relay.command('fsck');
  });

  test(`a backup of ${version}`, async t => {
    const { relay, client, expected, backup } = await stored(t, version);
    await rm(relay.documents, { recursive: true });
    await rm(join(relay.at, 'bundles'), { recursive: true });
    await relay.start();
    relay.command('fsck', backup);
    const answer = json(relay, 'restore', backup);
    assert.deepEqual([answer.bundles, answer.tombstones.length], [1, 1]);
    const { repo } = client();
    for (const [name, { id, backup }] of Object.entries(expected.documents)) {
      if (backup) assert.deepEqual(plain((await repo.find(url(id))).doc()), backup, name);
    }
    await assert.rejects(repo.find(url(expected.deleted.id)), /unavailable/);
  });

  test(`a config with every key of ${version}`, async () => {
    const file = join(FIXTURES, version, 'config.toml');
    const { config } = JSON.parse(await readFile(join(FIXTURES, version, 'expected.json')));
    const now = printedConfig(file);
    for (const [key, value] of Object.entries(config)) assert.equal(now[key], value, key);
  });
}

test('what a later version has written is refused by name, and is not changed', async t => {
  const version = versions.at(-1);
  const { at, relay, expected, backup } = await stored(t, version);
  const { documents } = relay;
  await writeFile(join(documents, '.format'), '2\n');
  const before = await readdir(documents, { recursive: true });
  await assert.rejects(relay.start(), /storage\.path: .*documents: .*\bformat 2\b.*\b1\b/);
  assert.match(fails(relay, 'fsck').stderr, /documents: .*\bformat 2\b/);
  assert.deepEqual(await readdir(documents, { recursive: true }), before);

  // The way back, as operation.md has it: the backup from before the upgrade, and then what the folders have.
  await writeFile(join(documents, '.format'), '1\n');
  relay.command('checkpoint');
  await writeFile(join(documents, '.format'), '2\n');
  const older = new Relay(join(at, 'older'), relay.config);
  atEnd(t, () => older.end());
  await mkdir(older.at);
  await older.start();
  await older.stop();
  assert.equal(json(older, 'restore', backup).tombstones.length, 1);
  json(older, 'import', documents);
  await older.start();
  const { repo } = older.client(t, { url: `${older.ws}/?token=${expected.tokens.app}` });
  for (const [name, { id, contents }] of Object.entries(expected.documents)) {
    assert.deepEqual(plain((await repo.find(url(id))).doc()), contents, name);
  }
  await assert.rejects(repo.find(url(expected.deleted.id)), /unavailable/);

  const index = join(backup, 'backup.json');
  const text = await readFile(index, 'utf8');
  await writeFile(index, text.replace('"format": 1', '"format": 2'));
  for (const words of [['restore', backup], ['fsck', backup], ['backup', backup]]) {
    assert.match(fails(older, ...words).stderr, /backup: .*\bformat 2\b.*\b1\b/, words.join(' '));
  }

  const tokens = join(at, 'tokens');
  await writeFile(tokens, (await readFile(tokens, 'utf8')).replace('[[token]]', '[[token]]\nlabel = "new"'));
  await writeFile(join(documents, '.format'), '1\n');
  await assert.rejects(relay.start(), /auth\.tokens: .*tokens: is not a file of tokens .*: line \d+: unknown field `label`/);
  const config = join(at, 'later.toml');
  await writeFile(config, '[sync]\nlater = true\n');
  const { status, stderr } = spawnSync(BINARY, ['--config', config], { encoding: 'utf8' });
  assert.equal(status, 78);
  assert.match(stderr, /later\.toml:2: sync\.later: unknown key/);
});
