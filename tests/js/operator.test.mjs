// What an operator does with what is stored: the same commands with the relay running or stopped.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { Repo } from '@automerge/automerge-repo';
import { NodeFSStorageAdapter } from '@automerge/automerge-repo-storage-nodefs';
import { unzipSync } from 'fflate';
import { BINARY, Relay, bundle, close, documentId, fill, folder, saved, share, smallDisk, until } from './relay.mjs';

const url = id => `automerge:${id}`;
const json = (relay, ...words) => JSON.parse(relay.command(...words, '--json'));
const find = async (t, relay, url) => (await relay.client(t).repo.find(url)).doc();
const isUnavailable = (t, relay, url) =>
  assert.rejects(relay.client(t).repo.find(url), /unavailable/);

/** What a command that fails exits with and says. */
function fails(relay, ...words) {
  const config = join(relay.at, 'tonk-relay.toml');
  const { status, stdout, stderr } = spawnSync(BINARY, [...words, '--config', config], { encoding: 'utf8' });
  assert.notEqual(status, 0, `${words.join(' ')}: ${stdout}`);
  return { status, stdout, stderr };
}

const filesOf = (relay, id) => join(relay.documents, id.slice(0, 2), id.slice(2));

/** Every text that is in the files of a folder. */
async function bytesIn(at) {
  const entries = await readdir(at, { recursive: true, withFileTypes: true });
  const files = entries.filter(entry => entry.isFile() && entry.name !== '.reserve');
  const read = await Promise.all(files.map(entry => readFile(join(entry.parentPath ?? entry.path, entry.name))));
  return Buffer.concat(read).toString('latin1');
}

test('a deleted document stays deleted: no client, bundle, import or restore brings it back', async t => {
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

  // An offline client keeps its copy, with a change that the relay never saw.
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
  assert.ok(receipt.backups[0].startsWith(backup), receipt.backups[0]);

  await isUnavailable(t, relay, handle.url);
  // The client that has it goes on bringing it.
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

test('a document is deleted on a full disk', async t => {
  const at = await smallDisk(t, 8);
  if (!at) return;
  const relay = await Relay.start(t, {}, at);
  const handle = await share(relay.client(t), { n: 1 });
  await fill(at);
  assert.equal(json(relay, 'doc', 'delete', handle.url).document, handle.documentId);
  await relay.kill();
  assert.match(fails(relay, 'doc', handle.url).stderr, /was deleted/);
});

test('fsck finds what is broken, and repairs it into quarantine', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const [good, bad] = [await share(client, { n: 1 }), await share(client, { n: 2 })];
  assert.match(relay.command('fsck'), /^2 documents in 2 chunks, \d+ bytes: 0 damages, 0 notes\n$/);
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
  assert.match(fails(relay, 'quarantine', 'release', entry.path).stderr, /does not parse/);

  // Whoever knows how to mend it may do so.
  await writeFile(join(relay.documents, 'quarantine', entry.path), whole);
  relay.command('quarantine', 'release', entry.path);
  assert.equal((await find(t, relay, bad.url)).n, 2);
  assert.equal((await find(t, relay, good.url)).n, 1);
  assert.deepEqual(json(relay, 'quarantine', 'list'), []);
  assert.deepEqual(json(relay, 'quarantine', 'purge', '--older-than', '0s'), []);
});

test('a backup of a running relay is whole, incremental and checked, and comes back elsewhere', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handles = [];
  for (let n = 0; n < 5; n++) handles.push(await share(client, { n, list: [] }));
  const gone = await share(client, { n: 'gone' });
  const root = documentId(5);
  await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' }, body: bundle({ [root]: { n: 1 } }),
  });
  const backup = join(await folder(t), 'backup');
  const editing = setInterval(() => handles[0].change(doc => { doc.list.push(doc.list.length); }), 2);
  t.after(() => clearInterval(editing));
  const first = json(relay, 'backup', backup);
  clearInterval(editing);
  assert.deepEqual([first.documents, first.copied, first.bundles], [6, 6, 1]);
  relay.command('fsck', backup);

  await saved(client, handles[0]);
  handles[1].change(doc => { doc.n = 'changed'; });
  await saved(client, handles[1]);
  relay.command('doc', 'delete', gone.url);
  const second = json(relay, 'backup', backup);
  assert.equal(second.documents, 5);
  assert.ok(second.copied <= 2 && second.unchanged >= 3, JSON.stringify(second));
  assert.equal(second.tombstones, 1);
  await close(client);
  await relay.stop();
  assert.equal(json(relay, 'backup', backup).documents, 5, 'stopped');
  // automerge-repo reads a backup, too.
  const theirs = new Repo({ storage: new NodeFSStorageAdapter(join(backup, 'documents')), network: [] });
  assert.equal((await theirs.find(handles[1].url)).doc().n, 'changed');

  for (const running of [false, true]) {
    const other = await Relay.start(t);
    if (!running) {
      await other.stop();
      await rm(other.documents, { recursive: true });
    }
    const answer = json(other, 'restore', backup);
    assert.deepEqual([answer.documents, answer.new, answer.bundles, answer.tombstones], [5, 5, 1, 1]);
    assert.equal(answer.storage_id, !running, 'a relay keeps an id that it has');
    assert.deepEqual([json(other, 'restore', backup).contained], [5], 'again: nothing happens');
    if (!running) await other.start();
    for (const handle of handles) assert.deepEqual(await find(t, other, handle.url), handle.doc());
    await isUnavailable(t, other, gone.url);
    assert.equal((await fetch(`${other.url}/api/bundles/${root}`)).status, 200);
  }

  // What is there is moved aside, not lost; a copy beside the first gets an id of its own.
  const third = await Relay.start(t);
  const owner = third.client(t);
  const mine = await share(owner, { mine: true });
  assert.match(fails(third, 'restore', backup, '--replace').stderr, /the relay runs: stop it/);
  await close(owner);
  await third.stop();
  const { replaced, storage_id } = json(third, 'restore', backup, '--replace', '--new-identity');
  assert.equal(storage_id, false);
  assert.ok((await bytesIn(replaced)).length > 0);
  await third.start();
  await isUnavailable(t, third, mine.url);
  assert.equal((await find(t, third, handles[1].url)).n, 'changed');

  // Damage in a backup is found, and not restored.
  const [id] = [handles[2].documentId];
  const at = join(backup, 'documents', id.slice(0, 2), id.slice(2), 'snapshot');
  const [name] = await readdir(at);
  await writeFile(join(at, name), 'not what it was');
  assert.equal(fails(relay, 'fsck', backup).status, 4);
  await writeFile(join(backup, 'backup.json'), '{"format": 99}');
  assert.match(fails(relay, 'restore', backup).stderr, /format 99/);
});

test('clients that are newer than the backup give back what is missing', async t => {
  const relay = await Relay.start(t);
  const at = await folder(t);
  const client = () => relay.client(t, { repo: { storage: new NodeFSStorageAdapter(at) } });
  const first = client();
  const handle = await share(first, { n: 1 });
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  handle.change(doc => { doc.n = 2; });
  await saved(first, handle);
  await first.repo.flush();
  // Its sync state, which says that the relay has it all, is on its disk.
  await new Promise(resolve => setTimeout(resolve, 500));
  await close(first);
  await relay.stop();
  relay.command('restore', backup, '--replace');
  await relay.start();
  assert.equal((await find(t, relay, handle.url)).n, 1, 'as it was then');
  const again = client();
  const found = await again.repo.find(handle.url);
  assert.equal(found.doc().n, 2);
  await until('the relay has it back', async () => (await find(t, relay, handle.url)).n === 2);
});

test('the folder of another relay is imported, and stays as it is', async t => {
  const source = join(await folder(t), 'automerge-repo-data');
  const theirs = new Repo({ storage: new NodeFSStorageAdapter(source), network: [] });
  const handles = [1, 2, 3].map(n => theirs.create({ n, list: [] }));
  for (const handle of handles) {
    handle.change(doc => { doc.list.push('an increment'); });
    await theirs.flush();
  }
  const storageId = await theirs.storageId();
  // As Tonk's relay names what came from a bundle.
  const tonk = documentId(3);
  const exported = join(source, tonk.slice(0, 2), tonk.slice(2), 'snapshot');
  await mkdir(exported, { recursive: true });
  await writeFile(join(exported, 'bundle_export'), Automerge.save(Automerge.from({ n: 'tonk' })));
  await writeFile(join(exported, 'broken'), 'garbage');
  const before = await bytesIn(source);

  const relay = new Relay(await folder(t));
  await relay.start();
  t.after(() => relay.kill());
  await relay.stop();
  await rm(relay.documents, { recursive: true });
  const dry = fails(relay, 'import', source, '--dry-run', '--json');
  assert.equal(dry.status, 1);
  assert.equal(JSON.parse(dry.stdout).new, 4);
  const { stdout } = fails(relay, 'import', source, '--json');
  const answer = JSON.parse(stdout);
  assert.deepEqual([answer.documents, answer.new, answer.storage_id], [4, 4, true]);
  assert.deepEqual(answer.refused.map(({ place }) => place), [`${tonk}/snapshot/broken`]);
  assert.equal(await bytesIn(source), before);
  await rm(join(exported, 'broken'));
  await relay.start();
  const client = relay.client(t);
  const live = await client.repo.find(handles[0].url);
  assert.deepEqual(live.doc(), handles[0].doc());
  assert.equal((await find(t, relay, url(tonk))).n, 'tonk');
  const peers = Object.values(client.repo.peerMetadataByPeerId);
  assert.equal(peers[0].storageId, storageId);

  // Again, with the relay running and a document live: what is new there arrives at once.
  handles[0].change(doc => { doc.n = 'newer'; });
  await theirs.flush();
  const again = json(relay, 'import', source);
  assert.deepEqual([again.new, again.newer, again.contained], [0, 1, 3]);
  await until('the live document has it', () => live.doc().n === 'newer');
  assert.match(fails(relay, 'import', join(source, 'nowhere')).stderr, /nowhere/);
});

test('an app is exported as it is now, as a bundle that is served', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const file = await share(client, { text: 'hello' });
  const other = await share(client, { n: 'not of this app' });
  const sub = await share(client, { type: 'dir', children: [{ name: 'file', pointer: file.documentId }] });
  const root = await share(client, { type: 'dir', children: [{ name: 'sub', pointer: sub.url }, { pointer: documentId(99) }] });
  file.change(doc => { doc.text = 'hello, now'; });
  await saved(client, file);
  const out = join(await folder(t), 'app.tonk');
  const answer = json(relay, 'export', root.documentId, out);
  assert.deepEqual([answer.documents, answer.missing], [3, [documentId(99)]]);
  assert.match(fails(relay, 'export', root.documentId, out).stderr, /is there already/);
  const entries = unzipSync(await readFile(out));
  assert.ok(!Object.keys(entries).some(name => name.includes(other.documentId.slice(2))));
  assert.equal(JSON.parse(Buffer.from(entries['manifest.json'])).rootId, root.documentId);

  const fresh = await Relay.start(t, { bundle: { path: `"${out}"` } });
  assert.equal((await find(t, fresh, file.url)).text, 'hello, now');
  // A bundle that is known keeps its manifest.
  await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' },
    body: bundle({ [root.documentId]: root.doc() }, { xVendor: { kept: true } }),
  });
  await close(client);
  await relay.stop();
  relay.command('export', root.documentId, out, '--force');
  const manifest = JSON.parse(Buffer.from(unzipSync(await readFile(out))['manifest.json']));
  assert.deepEqual(manifest.xVendor, { kept: true });
});
