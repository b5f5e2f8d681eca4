// Commands for stored documents: the same with the relay running or stopped.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { bytesIn, fails, filesOf, find, isUnavailable, json, url } from './commands.mjs';
import { BINARY, Relay, bundle, close, documentId, fill, folder, saved, share, smallDisk, until, upload } from './relay.mjs';

test('no client, bundle, import or restore brings a deleted document back', async t => {
  const relay = await Relay.start(t);
  const [owner, other] = [relay.client(t), relay.client(t)];
  const handle = await share(owner, { secret: 'xyzzy-plugh' });
  const id = handle.documentId;
  assert.equal((await other.repo.find(handle.url)).doc().secret, 'xyzzy-plugh');
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  const upload = await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: bundle({ [id]: handle.doc() }),
  });
  assert.equal(upload.status, 200);
  const holder = documentId(7);
  await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' },
    body: bundle({ [holder]: { n: 1 }, [id]: handle.doc() }),
  });

  // An offline client keeps its copy, with a change that the relay has never received.
  await close(other);
  handle.change(doc => { doc.more = 1; });
  await saved(owner, handle);
  const receipt = json(relay, 'doc', 'delete', handle.url, '--reason', 'asked for');
  assert.equal(receipt.document, id);
  assert.equal(receipt.reason, 'asked for');
  assert.ok(receipt.chunks >= 1 && receipt.bytes > 0, JSON.stringify(receipt));
  assert.equal(receipt.bundle, true);
  assert.deepEqual(receipt.held_by_bundles, [holder]);
  assert.equal(receipt.backups.length, 1);
  assert.deepEqual([receipt.backups[0].folder, receipt.backups[0].holds], [backup, true]);
  assert.deepEqual(receipt.kept, []);
  await until('it is in the log', () => /an operator deleted a document/.test(relay.log));

  await isUnavailable(t, relay, handle.url);
  // The client that has it keeps sending it.
  handle.change(doc => { doc.more = 2; });
  const back = relay.client(t);
  const copy = back.repo.import(Automerge.save(handle.doc()), { docId: id });
  copy.change(doc => { doc.more = 3; });
  await until('it was dropped', async () =>
    await relay.metric('tonk_relay_messages_dropped_total{reason="deleted"}') > 0);
  await isUnavailable(t, relay, handle.url);
  assert.equal((await fetch(`${relay.url}/api/bundles/${id}`)).status, 404);
  const again = await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: bundle({ [id]: handle.doc() }),
  });
  assert.equal(again.status, 410);
  const restored = json(relay, 'restore', backup);
  assert.deepEqual([restored.documents, restored.deleted, restored.new], [1, 1, 0]);
  assert.ok(!(await bytesIn(relay.documents)).includes('xyzzy-plugh'), 'not a byte of it is left');
  assert.match(fails(relay, 'doc', handle.url).stderr, /was deleted at .*: asked for/);
  assert.equal(json(relay, 'doc', 'delete', id).reason, 'asked for', 'deleted again, the first reason stays');
  relay.command('backup', backup);
  assert.equal(json(relay, 'doc', 'delete', id).backups[0].holds, false, 'the renewed backup is without it');

  // Also over a restart, and with the relay stopped.
  for (const client of [owner, back]) await close(client);
  await relay.restart();
  await isUnavailable(t, relay, handle.url);
  await relay.stop();
  relay.command('doc', 'undelete', id);
  assert.match(fails(relay, 'doc', 'undelete', id).stderr, /was not deleted/);
  await relay.start();
  const last = relay.client(t);
  const brought = last.repo.import(Automerge.save(handle.doc()), { docId: id });
  await saved(last, brought);
  assert.equal((await find(t, relay, handle.url)).secret, 'xyzzy-plugh');
});

test('a document can be deleted on a full disk', async t => {
  const at = await smallDisk(t, 8);
  if (!at) return;
  const relay = await Relay.start(t, {}, at);
  const handle = await share(relay.client(t), { n: 1 });
  await fill(at);
  assert.equal(json(relay, 'doc', 'delete', handle.url).document, handle.documentId);
  await relay.kill();
  assert.match(fails(relay, 'doc', handle.url).stderr, /was deleted/);
});

test('fsck finds broken chunks, and moves them to quarantine', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const [good, bad] = [await share(client, { n: 1 }), await share(client, { n: 2 })];
  assert.match(relay.command('fsck'), /^2 documents in 2 chunks, \d+ bytes; 0 bundles: 0 damages, 0 notes\n$/);
  await close(client);
  await relay.stop();

  const [snapshots] = await readdir(filesOf(relay, bad.documentId));
  const chunks = join(filesOf(relay, bad.documentId), snapshots);
  const [name] = await readdir(chunks);
  const whole = await readFile(join(chunks, name));
  const flipped = Buffer.from(whole);
  flipped[flipped.length >> 1] ^= 1;
  await writeFile(join(chunks, name), flipped);
  await mkdir(join(relay.documents, 'lost+found'));
  const look = () => {
    const { status, stdout } = fails(relay, 'fsck', '--json');
    assert.equal(status, 4);
    const { findings, summary } = JSON.parse(stdout);
    assert.deepEqual([summary.damages, summary.notes, summary.repaired], [1, 1, 0]);
    assert.deepEqual(findings.map(({ kind }) => kind).sort(), ['broken', 'foreign']);
    assert.ok(findings.some(({ place }) => place === `${bad.documentId}/${snapshots}/${name}`), stdout);
  };
  look();
  assert.equal(fails(relay, 'fsck', relay.documents).status, 4, 'the folder alone');
  await relay.start();
  look();

  const { status, stdout } = fails(relay, 'fsck', '--repair');
  assert.equal(status, 1);
  assert.match(stdout, /1 repaired/);
  const [entry] = json(relay, 'quarantine', 'list');
  assert.match(entry.path, new RegExp(`${snapshots}/${name}$`));
  assert.ok(entry.reason.length > 0 && entry.bytes === flipped.length);
  const released = JSON.parse(fails(relay, 'quarantine', 'release', 'no/such/snapshot/x', entry.path, '--json').stdout);
  assert.match(released.failed[0], /not in quarantine/);
  assert.match(released.failed[1], /does not parse/);
  assert.match(relay.command('status'), /quarantine   1 file:/);
  assert.equal(json(relay, 'doc', bad.url).quarantined[0].path, entry.path);

  // An operator who can repair it may release it.
  await writeFile(join(relay.documents, 'quarantine', entry.path), whole);
  relay.command('quarantine', 'release', entry.path);
  assert.equal((await find(t, relay, bad.url)).n, 2);
  assert.equal((await find(t, relay, good.url)).n, 1);
  assert.deepEqual(json(relay, 'quarantine', 'list'), []);
  assert.deepEqual(json(relay, 'quarantine', 'purge', '--older-than', '0s'), { done: [], failed: [] });
  for (const [words, empty] of [
    [['quarantine', 'list'], 'the quarantine is empty\n'],
    [['quarantine', 'purge', '--older-than', '0s'], 'nothing in the quarantine matches; nothing was deleted\n'],
    [['doc', 'blocked'], 'no document is blocked\n'],
  ]) {
    const { stdout, stderr } = spawnSync(BINARY, [...words, '--config', join(relay.at, 'tonk-relay.toml')], { encoding: 'utf8' });
    assert.deepEqual([stdout, stderr], ['', empty], 'a script counts no lines');
  }
});

test('commands that only read leave a broken journal, and the relay moves it to quarantine at its start', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  await close(client);
  await relay.kill();
  const journal = join(relay.documents, '.journal');
  const files = async at => Object.fromEntries(await Promise.all(
    (await readdir(at)).filter(name => !/-shm$|^reason$/.test(name))
      .map(async name => [name, (await readFile(join(at, name))).toString('latin1')])));
  await writeFile(join(journal, 'journal.sqlite'), 'no journal any more'.repeat(1000));
  const before = await files(journal);
  assert.ok(before['journal.sqlite-wal'].length > 0);
  for (const words of [['fsck'], ['fsck', '--json'], ['doc', handle.url], ['backup', join(relay.at, 'b')]]) {
    const { status, stderr } = fails(relay, ...words);
    assert.equal(status, 4, `${words}: ${stderr}`);
    assert.match(stderr, /journal\.sqlite: .*fsck --repair/);
  }
  assert.deepEqual(await files(journal), before, 'nothing was changed');
  await relay.start();
  assert.match(relay.log, /the journal is broken/);
  assert.match(relay.command('status'), /quarantine   [23] files:/);
  assert.deepEqual(await files(join(relay.documents, 'quarantine/journal-0')), before);
  const receipt = json(relay, 'doc', 'delete', handle.url);
  assert.deepEqual(receipt.kept, [join(relay.documents, 'quarantine/journal-0')], 'the receipt names it');
});

test('fsck reports when it could not check, and creates nothing', async t => {
  const relay = await Relay.start(t);
  const empty = await folder(t);
  const status = (...words) => fails(relay, 'fsck', ...words).status;
  assert.equal(status('--socket', join(empty, 'none.sock')), 8);
  assert.equal(status(join(empty, 'none')), 8);
  assert.equal(status(empty), 8);
  await relay.stop();
  await rm(relay.documents, { recursive: true });
  assert.equal(status(), 8);
  assert.equal(fails(relay, 'doc', documentId(1)).status, 1);
  await assert.rejects(readdir(relay.documents), /ENOENT/);
});

test('fsck finds a broken uploaded bundle, and a document of which nothing is left', async t => {
  const relay = await Relay.start(t);
  const [id, client] = [documentId(3), relay.client(t)];
  await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: bundle({ [id]: { n: 1 } }),
  });
  const handle = await share(client, { n: 1 });
  handle.change(doc => { doc.n = 2; });
  await saved(client, handle);
  await close(client);
  await relay.stop();
  await writeFile(join(relay.at, 'bundles', `${id}.tonk`), 'no bundle');
  // Only the second change is left.
  const [first, second] = Automerge.getAllChanges(handle.doc());
  assert.ok(first);
  await rm(filesOf(relay, handle.documentId), { recursive: true });
  await mkdir(join(filesOf(relay, handle.documentId), 'incremental'), { recursive: true });
  await writeFile(join(filesOf(relay, handle.documentId), 'incremental', 'x'), second);
  const { status, stdout } = fails(relay, 'fsck', '--json');
  assert.equal(status, 4);
  const found = JSON.parse(stdout).findings.map(({ kind, place }) => [kind, place]).sort();
  assert.deepEqual(found, [['broken', `bundle ${id}`], ['lost', handle.documentId]]);
});

test('commands work while the config has a fault, and when their output is no longer read', async t => {
  const relay = await Relay.start(t);
  await share(relay.client(t), { n: 1 });
  const config = join(relay.at, 'tonk-relay.toml');
  const text = await readFile(config, 'utf8');
  await writeFile(config, `${text}\n[nonsense]\nkey = 1\n`);
  assert.match(relay.command('status'), /ready        yes/);
  assert.match(relay.command('fsck'), /1 document in/);
  // The owner of the socket is not guessed.
  for (const broken of [`${text}\nno = TOML = at all\n`, undefined]) {
    await (broken ? writeFile(config, broken) : rm(config));
    assert.equal(fails(relay, 'status').status, 78);
  }
  await writeFile(config, text);
  const line = `set -o pipefail; '${BINARY}' fsck --json --config '${config}' | true`;
  for (let n = 0; n < 5; n++) {
    const { status, stderr } = spawnSync('bash', ['-c', line], { encoding: 'utf8' });
    assert.deepEqual([status, stderr], [0, '']);
  }
});

test('the bundles that hold a deleted document are known without reading them', async t => {
  const relay = await Relay.start(t);
  const [root, other] = [documentId(1), documentId(2)];
  assert.equal((await upload(relay, bundle({ [root]: { n: 1 }, [other]: { n: 2 } }))).status, 200);
  const file = join(relay.at, 'bundles', `${root}.tonk`);
  // The file can no longer be read, but the metadata of its ETag is unchanged.
  execFileSync('sh', ['-c', 'touch -r "$1" "$2/time" && size=$(stat -c %s "$1") && head -c $size /dev/zero | dd of="$1" conv=notrunc status=none && touch -r "$2/time" "$1"', 'sh', file, relay.at]);
  const receipt = json(relay, 'doc', 'delete', other);
  assert.deepEqual(receipt.held_by_bundles, [root]);
});
