// Copies of stored documents: backup, restore, import and export.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { spawnSync } from 'node:child_process';
import { chmod, lstat, mkdir, readFile, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { Repo } from '@automerge/automerge-repo';
import { NodeFSStorageAdapter } from '@automerge/automerge-repo-storage-nodefs';
import { unzipSync } from 'fflate';
import { bytesIn, fails, filesOf, find, isUnavailable, json, url } from './commands.mjs';
import { BINARY, Relay, SharedFolder, atEnd, bundle, close, documentId, folder, saved, share, until, upload } from './relay.mjs';

test('a backup of a running relay is complete, incremental and verified, and can be restored elsewhere', async t => {
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
  atEnd(t, () => clearInterval(editing));
  const first = json(relay, 'backup', backup);
  clearInterval(editing);
  assert.deepEqual([first.documents, first.copied, first.bundles], [7, 7, 1]);
  relay.command('fsck', backup);

  await saved(client, handles[0]);
  handles[1].change(doc => { doc.n = 'changed'; });
  await saved(client, handles[1]);
  relay.command('doc', 'delete', gone.url);
  const second = json(relay, 'backup', backup);
  assert.equal(second.documents, 6);
  assert.ok(second.copied <= 2 && second.unchanged >= 3, JSON.stringify(second));
  assert.equal(second.tombstones, 1);
  await close(client);
  await relay.stop();
  assert.equal(json(relay, 'backup', backup).documents, 6, 'stopped');
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
    assert.deepEqual([answer.documents, answer.new, answer.bundles, answer.tombstones.length], [6, 6, 1, 1]);
    assert.equal(answer.storage_id, !running, 'a relay keeps an id that it has');
    assert.deepEqual([json(other, 'restore', backup).contained], [6], 'again: nothing happens');
    if (!running) await other.start();
    for (const handle of handles) assert.deepEqual(await find(t, other, handle.url), handle.doc());
    await isUnavailable(t, other, gone.url);
    assert.equal((await fetch(`${other.url}/api/bundles/${root}`)).status, 200);
  }

  // The stored documents are moved aside and not lost. A second copy gets an id of its own.
  const third = await Relay.start(t);
  const owner = third.client(t);
  const mine = await share(owner, { mine: true });
  assert.match(fails(third, 'restore', backup, '--replace').stderr, /the relay is running; stop it/);
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

test('the backup of a relay without documents has no damage', async t => {
  const relay = await Relay.start(t);
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  assert.match(relay.command('fsck', backup), /^0 documents .* 0 damages/);
  const { status, stderr } = fails(relay, 'fsck', await folder(t));
  assert.deepEqual([status, /: no document/.test(stderr)], [8, true]);
});

test('clients that are newer than the backup send the missing changes again', async t => {
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
  // Its sync state on disk says that the relay has everything.
  await new Promise(resolve => setTimeout(resolve, 500));
  await close(first);
  await relay.stop();
  relay.command('restore', backup, '--replace');
  await relay.start();
  assert.equal((await find(t, relay, handle.url)).n, 1, 'its former state');
  const again = client();
  const found = await again.repo.find(handle.url);
  assert.equal(found.doc().n, 2);
  await until('the relay has it again', async () => (await find(t, relay, handle.url)).n === 2);
});

test('the folder of another relay is imported and not changed', async t => {
  const source = join(await folder(t), 'automerge-repo-data');
  const storage = new SharedFolder(source);
  const theirs = new Repo({ storage, network: [] });
  const handles = [1, 2, 3].map(n => theirs.create({ n, list: [] }));
  for (const handle of handles) {
    handle.change(doc => { doc.list.push('an increment'); });
    await storage.flush(theirs);
  }
  const storageId = await theirs.storageId();
  // Named as Tonk's relay names chunks from a bundle.
  const tonk = documentId(3);
  const exported = join(source, tonk.slice(0, 2), tonk.slice(2), 'snapshot');
  await mkdir(exported, { recursive: true });
  await writeFile(join(exported, 'bundle_export'), Automerge.save(Automerge.from({ n: 'tonk' })));
  await writeFile(join(exported, 'broken'), 'garbage');
  const before = await bytesIn(source);

  const relay = new Relay(await folder(t));
  await relay.start();
  atEnd(t, () => relay.end());
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

  // Again, with the relay running and a document live, whose new changes arrive at once.
  handles[0].change(doc => { doc.n = 'newer'; });
  await storage.flush(theirs);
  const again = json(relay, 'import', source);
  assert.deepEqual([again.new, again.newer, again.contained], [0, 1, 3]);
  await until('the live document has it', () => live.doc().n === 'newer');
  assert.match(fails(relay, 'import', join(source, 'nowhere')).stderr, /nowhere/);
});

test('an app is exported in its current state, as a bundle that can be served', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const file = await share(client, { text: 'hello' });
  const other = await share(client, { n: 'not of this app' });
  const sub = await share(client, { type: 'dir', children: [{ name: 'file', pointer: file.documentId }] });
  const root = await share(client, { type: 'dir', children: [{ name: 'sub', pointer: sub.url }, { pointer: documentId(99) }] });
  file.change(doc => { doc.text = 'hello, now'; });
  await saved(client, file);
  const out = join(await folder(t), 'app.tonk');
  const { status, stdout } = fails(relay, 'export', root.documentId, out, '--json');
  assert.equal(status, 1, 'a mentioned document is not loaded');
  const answer = JSON.parse(stdout);
  assert.deepEqual([answer.documents, answer.missing], [3, [documentId(99)]]);
  assert.equal((await stat(out)).mode & 0o777, 0o644);
  assert.match(fails(relay, 'export', root.documentId, out).stderr, /already exists/);
  const entries = unzipSync(await readFile(out));
  assert.ok(!Object.keys(entries).some(name => name.includes(other.documentId.slice(2))));
  assert.equal(JSON.parse(Buffer.from(entries['manifest.json'])).rootId, root.documentId);

  const fresh = await Relay.start(t, { bundle: { path: `"${out}"` } });
  assert.equal((await find(t, fresh, file.url)).text, 'hello, now');
  // A known bundle keeps its manifest.
  await fetch(`${relay.url}/api/bundles`, {
    method: 'POST', headers: { 'content-type': 'application/octet-stream' },
    body: bundle({ [root.documentId]: root.doc() }, { xVendor: { kept: true } }),
  });
  await close(client);
  await relay.stop();
  // Through a link, and with the permissions of the existing file.
  await chmod(out, 0o640);
  const link = `${out}.link`;
  await symlink(out, link);
  assert.equal(fails(relay, 'export', root.documentId, link, '--force').status, 1);
  assert.ok((await lstat(link)).isSymbolicLink());
  assert.equal((await stat(out)).mode & 0o777, 0o640);
  const manifest = JSON.parse(Buffer.from(unzipSync(await readFile(out))['manifest.json']));
  assert.deepEqual(manifest.xVendor, { kept: true });
});

test('documents of the served bundle are exported too, edited or not', async t => {
  const at = await folder(t);
  const [root, leaf] = [documentId(1), documentId(2)];
  await writeFile(join(at, 'app.tonk'), bundle({ [root]: { leaf, n: 1 }, [leaf]: { text: 'of the bundle' } }));
  const relay = await Relay.start(t, { bundle: { path: `"${join(at, 'app.tonk')}"` } });
  const out = join(at, 'out.tonk');
  assert.equal(json(relay, 'export', root, out).documents, 2);
  const fresh = await Relay.start(t, { bundle: { path: `"${out}"` } });
  assert.equal((await find(t, fresh, url(leaf))).text, 'of the bundle');
});

test('a backup keeps what it has of documents that are broken, lost or unreadable', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const names = ['broken', 'lost', 'unreadable', 'whole'];
  const handles = {};
  for (const name of names) handles[name] = await share(client, { name, n: 1 });
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  const damaged = {};
  for (const name of names) {
    handles[name].change(doc => { doc.n = 2; });
    await saved(client, handles[name]);
    damaged[name] = filesOf(relay, handles[name].documentId);
  }
  await close(client);
  await relay.stop();
  const changes = Automerge.getAllChanges(handles.lost.doc());
  const only = async (at, kind, data) => {
    await rm(at, { recursive: true });
    await mkdir(join(at, kind), { recursive: true });
    await writeFile(join(at, kind, 'x'), data);
  };
  await only(damaged.broken, 'snapshot', 'garbage');
  await only(damaged.lost, 'incremental', changes[1]);
  await writeFile(join(damaged.unreadable, 'snapshot/x'), Automerge.save(handles.unreadable.doc()));
  await rm(join(damaged.unreadable, 'incremental'), { recursive: true, force: true });
  await writeFile(join(damaged.unreadable, 'incremental'), 'a file in the place of a folder');

  for (const running of [false, true]) {
    if (running) await relay.start();
    const { status, stdout } = fails(relay, 'backup', backup, '--json');
    assert.equal(status, 1);
    const answer = JSON.parse(stdout);
    const failed = answer.failed.map(({ place, reason }) => `${place} ${reason}`).join('\n');
    assert.match(failed, /snapshot\/x/, failed);
    assert.match(failed, new RegExp(handles.unreadable.documentId));
    assert.equal(answer.documents, 4);
    relay.command('fsck', backup);
  }

  const other = await Relay.start(t);
  assert.equal(json(other, 'restore', backup).new, 4);
  const restored = {};
  for (const name of names) restored[name] = (await find(t, other, handles[name].url)).n;
  assert.deepEqual(restored, { broken: 1, lost: 2, unreadable: 1, whole: 2 });
});

test('an interrupted first backup does not count as complete, and is resumed', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  for (let n = 0; n < 3; n++) await share(client, { n });
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  const index = join(backup, 'backup.json');
  const made = JSON.parse(await readFile(index, 'utf8'));
  const [missing] = Object.keys(made.documents);
  delete made.documents[missing];
  await writeFile(index, JSON.stringify({ ...made, is_complete: false }));
  await mkdir(join(backup, 'deleted'), { recursive: true });
  await writeFile(join(backup, 'deleted', '.tmpX1'), 'half');

  // A temporary file among the documents, too.
  const [whole] = Object.keys(made.documents);
  await writeFile(join(backup, 'documents', whole.slice(0, 2), whole.slice(2), 'snapshot/.tmpX2'), 'half');

  const other = await Relay.start(t);
  assert.match(fails(other, 'restore', backup).stderr, /is an incomplete backup.*--unfinished/);
  assert.equal(fails(other, 'fsck', backup).status, 4);
  assert.equal(json(other, 'restore', backup, '--unfinished').new, 2);
  const answer = json(relay, 'backup', backup);
  assert.deepEqual([answer.copied, answer.unchanged], [1, 2]);
  assert.equal(json(other, 'restore', backup).new, 1);
  // A document and a bundle that are missing without a deletion are kept, and reported.
  const id = documentId(4);
  await upload(relay, bundle({ [id]: { n: 1 } }));
  relay.command('backup', backup);
  await close(client);
  await relay.stop();
  await rm(filesOf(relay, id), { recursive: true });
  await rm(join(relay.at, 'bundles', `${id}.tonk`));
  const gone = fails(relay, 'backup', backup, '--json');
  assert.deepEqual([gone.status, JSON.parse(gone.stdout).kept, JSON.parse(gone.stdout).kept_bundles], [1, [id], [id]]);
  assert.match(fails(relay, 'backup', join(relay.documents, 'backup')).stderr, /inside one of the relay's own folders/);
});

test('a corrupted file of a backup is found by the next backup, and copied again', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  const root = documentId(5);
  await upload(relay, bundle({ [root]: { n: 1 } }));
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  const files = join(backup, 'documents', handle.documentId.slice(0, 2), handle.documentId.slice(2), 'snapshot');
  const damaged = [join(files, (await readdir(files))[0]), join(backup, 'bundles', `${root}.tonk`)];
  for (const file of damaged) {
    const data = await readFile(file);
    data[data.length >> 1] ^= 1;
    await writeFile(file, data);
  }
  const answer = json(relay, 'backup', backup);
  assert.deepEqual([answer.damaged, answer.copied, answer.unchanged], [damaged, 1, 1]);
  relay.command('fsck', backup);
  assert.deepEqual(json(relay, 'backup', backup).damaged, []);
});

test('a restore that replaces everything restores nothing deleted, and no relay starts before it is complete', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const [kept, gone] = [await share(client, { n: 'kept' }), await share(client, { n: 'gone' })];
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  relay.command('doc', 'delete', gone.url);
  const later = await share(client, { n: 'later' });
  await close(client);
  await relay.stop();

  // A damaged backup replaces nothing.
  const files = join(backup, 'documents', kept.documentId.slice(0, 2), kept.documentId.slice(2), 'snapshot');
  const [name] = await readdir(files);
  const whole = await readFile(join(files, name));
  await writeFile(join(files, name), 'damaged');
  assert.match(fails(relay, 'restore', backup, '--replace').stderr, /1 damage; nothing was replaced/);
  assert.ok(!(await readdir(relay.documents)).some(name => name.startsWith('.replac')));
  await writeFile(join(files, name), whole);

  const first = json(relay, 'restore', backup, '--replace');
  assert.deepEqual([first.new, first.deleted], [1, 1]);
  // As if it had been interrupted after everything was moved aside.
  await interrupt(relay, backup, first);
  await assert.rejects(relay.start(), /restore --replace \S+backup` was not finished\. Run it again/);
  const again = json(relay, 'restore', backup, '--replace');
  assert.deepEqual([again.contained, again.replaced], [1, first.replaced]);
  await relay.start();
  assert.equal((await find(t, relay, kept.url)).n, 'kept');
  await isUnavailable(t, relay, gone.url);
  await isUnavailable(t, relay, later.url);
  // How to undo the replacement.
  assert.equal(json(relay, 'import', first.replaced).new, 1);
  assert.equal((await find(t, relay, later.url)).n, 'later');
});

/**
 * As if a restore that replaces everything had been interrupted after all documents were restored.
 */
async function interrupt(relay, backup, { replaced }) {
  const sha256 = createHash('sha256').update(await readFile(join(backup, 'backup.json'))).digest('hex');
  const folders = [replaced.split('/').at(-1)];
  const replacing = { backup: { folder: backup, sha256 }, folders, is_moved: true };
  await writeFile(join(relay.documents, '.replacing'), JSON.stringify(replacing));
}

test('after an interrupted restore of one backup, the restore of another starts from nothing', async t => {
  const backups = [], ids = [];
  for (const n of [1, 2]) {
    const relay = await Relay.start(t);
    const client = relay.client(t);
    const [kept, gone] = [await share(client, { n }), await share(client, { n })];
    relay.command('doc', 'delete', gone.url);
    ids.push({ kept: kept.url, gone: gone.url });
    backups.push(join(await folder(t), 'backup'));
    relay.command('backup', backups.at(-1));
  }
  const relay = await Relay.start(t);
  const mine = await share(relay.client(t), { n: 'mine' });
  await close(relay.clients[0]);
  await relay.stop();
  const first = json(relay, 'restore', backups[0], '--replace');
  await interrupt(relay, backups[0], first);
  const config = join(relay.at, 'tonk-relay.toml');
  const { status, stdout, stderr } = spawnSync(BINARY, ['restore', backups[1], '--replace', '--json', '--config', config], { encoding: 'utf8' });
  assert.equal(status, 0, stderr);
  assert.equal(JSON.parse(stdout).replaced, first.replaced, 'where the original documents are');
  const [, partial] = /restore of another backup was interrupted; its files were moved to (\S+)/.exec(stderr);
  await relay.start();
  assert.equal((await find(t, relay, ids[1].kept)).n, 2);
  await isUnavailable(t, relay, ids[0].kept);
  await isUnavailable(t, relay, mine.url);
  // Nothing of either is lost.
  assert.equal(json(relay, 'import', first.replaced).new, 1);
  assert.equal((await find(t, relay, mine.url)).n, 'mine');
  assert.equal(json(relay, 'import', partial).new, 1);
});

test('documents that a restore moved away can be restored, even if the backup has their tombstones', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  relay.command('doc', 'delete', handle.url);
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  relay.command('doc', 'undelete', handle.documentId);
  const back = relay.client(t);
  await saved(back, back.repo.import(Automerge.save(handle.doc()), { docId: handle.documentId }));
  for (const one of [client, back]) await close(one);
  await relay.stop();
  const { replaced } = json(relay, 'restore', backup, '--replace');
  await relay.start();
  assert.equal(json(relay, 'import', replaced).new, 1);
  assert.equal((await find(t, relay, handle.url)).n, 1);
});

test('a folder of another tonk-relay is imported after a clean stop, but not with changes in its journal', async t => {
  const source = await Relay.start(t);
  const client = source.client(t);
  const handle = await share(client, { n: 1 });
  await close(client);
  const relay = await Relay.start(t);
  assert.match(fails(relay, 'import', source.documents).stderr, /has a journal .*checkpoint/);
  assert.match(fails(relay, 'import', relay.documents).stderr, /own folder/);
  await source.stop();
  const before = await bytesIn(source.documents);
  assert.equal(json(relay, 'import', source.documents).new, 1);
  assert.equal(await bytesIn(source.documents), before);
  assert.equal((await find(t, relay, handle.url)).n, 1);

  // Its id is taken over only if requested, and only if it is valid.
  const adopt = async (...words) => {
    await relay.stop();
    await rm(relay.documents, { recursive: true });
    const dry = json(relay, 'import', source.documents, '--dry-run', ...words).storage_id;
    const done = json(relay, 'import', source.documents, ...words).storage_id;
    assert.equal(dry, done);
    await relay.start();
    return done;
  };
  assert.equal(await adopt('--new-identity'), false);
  assert.equal(await adopt(), true);
  await writeFile(join(source.documents, 'st/orage-adapter-id'), 'no id\nat all');
  await relay.stop();
  await rm(relay.documents, { recursive: true });
  assert.match(fails(relay, 'import', source.documents).stdout, /refused: .*UUID/);
  await relay.start();
  assert.equal((await find(t, relay, handle.url)).n, 1);
});
