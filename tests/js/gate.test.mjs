// Changes that may not become part of a document are refused, for that document only and from every
// source.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { cp, mkdir, readFile, readdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { isDeepStrictEqual } from 'node:util';
import * as Automerge from '@automerge/automerge';
import { fails, filesOf, json, url } from './commands.mjs';
import { Relay, bundle, close, documentId, entry, folder, saved, share, until, upload } from './relay.mjs';
import { syncMessageWith, poisonedChanges, joined, refused, sync } from './raw.mjs';

const save = handle => Automerge.save(handle.doc());
const bytesOf = (doc, chunks) => Buffer.concat([Automerge.save(doc), ...chunks]);
const hashOf = chunks => chunks.at(-1).hash;

/** Every client reads the document as its author has it, and can edit it. */
async function assertIntact(t, relay, handle, client) {
  handle.change(doc => { doc.after = 'an edit'; });
  await saved(client, handle);
  const reader = relay.client(t);
  const read = await reader.repo.find(handle.url);
  assert.deepEqual(read.doc(), handle.doc());
  await close(reader);
  const doc = handle.doc();
  assert.deepEqual(Automerge.getHeads(Automerge.load(Automerge.save(doc))).sort(), Automerge.getHeads(doc).sort());
}

for (const engine of ['native', 'samod']) {
  test(`changes that could not be read again are refused, and everything else continues (${engine})`, async t => {
    const relay = await Relay.start(t, { sync: { engine: `"${engine}"` } });
    const honest = relay.client(t);
    // samod does not report what it has stored.
    const share2 = async contents => {
      const handle = honest.repo.create(contents);
      await until('it is there', () => relay.client(t).repo.find(handle.url).catch(() => undefined));
      return handle;
    };
    const other = await (engine === 'native' ? share(honest, { other: 1 }) : share2({ other: 1 }));
    const { good, evil } = poisonedChanges(Automerge.from({ text: 'precious' }));
    for (const name of [...Object.keys(good), ...Object.keys(evil)]) {
      const handle = await (engine === 'native' ? share(honest, { text: 'precious' }) : share2({ text: 'precious' }));
      const changes = poisonedChanges(Automerge.load(save(handle)));
      const chunks = changes.good[name] ?? changes.evil[name];
      const socket = await joined(t, relay, `sends-${name}`);
      sync(socket, handle.documentId, syncMessageWith(Buffer.concat(chunks), hashOf(chunks)), 'sync');
      if (name in good) {
        await until('a change is accepted', () => 'a' in handle.doc());
      } else {
        assert.match(await refused(socket, handle.documentId), /^the changes to \S+ (are not encoded as automerge|cannot be applied|use the operation number)/, name);
      }
      if (engine === 'native') await assertIntact(t, relay, handle, honest);
      // Its other documents still work, and so do reads of this one.
      sync(socket, other.documentId);
      await until('its other document', () => socket.heard.some(({ type, documentId }) => type === 'sync' && documentId === other.documentId));
      if (name === 'forgetsItself') {
        // Again, in two messages.
        const again = await joined(t, relay, 'in-two-messages');
        sync(again, handle.documentId, syncMessageWith(chunks[0], chunks[0].hash), 'sync');
        sync(again, handle.documentId, syncMessageWith(chunks[1], chunks[1].hash), 'sync');
        await refused(again, handle.documentId);
      }
    }
    await until('all are stored', async () => await relay.metric('tonk_relay_storage_unsaved_bytes') === 0);
    await relay.restart();
    const reader = relay.client(t);
    for (const handle of Object.values(honest.repo.handles)) {
      await until('the same document', async () =>
        isDeepStrictEqual((await reader.repo.find(handle.url)).doc(), handle.doc()));
    }
    assert.equal(await relay.metric('tonk_relay_room_panics_total'), 0);
    assert.deepEqual(json(relay, 'quarantine', 'list'), []);
  });
}

test('a client that holds a poisoned document and a good one keeps the good one', async t => {
  const relay = await Relay.start(t);
  const owner = relay.client(t);
  const poisoned = await share(owner, { text: 'precious' });
  const { evil } = poisonedChanges(Automerge.load(save(poisoned)));
  // It was poisoned elsewhere, by changes that every automerge accepts.
  const client = relay.client(t, { retry: 100 });
  const mine = await client.repo.find(poisoned.url);
  mine.update(doc => Automerge.applyChanges(doc, evil.forgetsItself)[0]);
  const good = client.repo.create({ n: 0 });
  const refusals = async () => {
    const reasons = ['unreadable', 'unappliable'].map(reason => relay.metric(`tonk_relay_documents_refused_total{reason="${reason}"}`));
    return (await Promise.all(reasons)).reduce((sum, count) => sum + count);
  };
  for (let n = 1; n <= 3; n++) {
    await until('it is refused', async () => await refusals() >= n);
    good.change(doc => { doc.n = n; });
    await saved(client, good);
    poisoned.change(doc => { doc.n = n; });
    await saved(owner, poisoned);
    await until('it still receives the poisoned document', () => mine.doc().n === n);
    if (n === 3) break;
    client.adapter.socket.close();
    await until('it reconnects', async () => await refusals() > n);
  }
  await assertIntact(t, relay, poisoned, owner);
  assert.match(relay.log, /refused changes; the peer may now only read this document: the changes to \S+ (are not encoded as automerge does it|cannot be applied)/);
  assert.doesNotMatch(relay.log, /panicked/);
});

test('an upload with such changes is answered with 400 and the reason, and changes nothing', async t => {
  const relay = await Relay.start(t);
  const honest = relay.client(t);
  const { evil } = poisonedChanges(Automerge.from({ text: 'precious' }));
  for (const name of Object.keys(evil)) {
    const handle = await share(honest, { text: 'precious' });
    const doc = Automerge.load(save(handle));
    const chunks = poisonedChanges(doc).evil[name];
    const [root, more] = [handle.documentId, documentId(crypto.getRandomValues(new Uint8Array(16)))];
    const body = bundle({ [more]: { n: 1 } }, { rootId: root }, { [entry(root)]: bytesOf(doc, chunks) });
    const answer = await upload(relay, body);
    assert.equal(answer.status, 400, name);
    const { error } = await answer.json();
    assert.ok(error.startsWith(`Invalid bundle: document ${root}: its changes `), error);
    assert.equal((await fetch(`${relay.url}/api/bundles/${root}`)).status, 404);
    await assert.rejects(relay.client(t).repo.find(url(more)), /unavailable/);
    await assertIntact(t, relay, handle, honest);
  }
  // A change that is valid by itself but conflicts with the stored document: another first change
  // of the same actor.
  const handle = await share(honest, { text: 'precious' });
  const actor = Automerge.getActorId(handle.doc());
  const body = bundle({ [handle.documentId]: Automerge.merge(Automerge.clone(handle.doc(), { actor: 'ab' }), Automerge.from({ n: 1 }, { actor: 'cd' })) });
  assert.equal((await upload(relay, body)).status, 200, `an honest change besides ${actor}`);
  await relay.stop();
  relay.command('fsck');
});

test('imports and restores refuse such changes and accept the others', async t => {
  const relay = await Relay.start(t);
  const honest = relay.client(t);
  const [handle, more] = [await share(honest, { text: 'precious' }), await share(honest, { n: 1 })];
  const backup = join(await folder(t), 'backup');
  json(relay, 'backup', backup);
  const doc = Automerge.load(save(handle));
  const chunks = poisonedChanges(doc).evil.forgetsItself;
  // A folder of automerge-repo with the poisoned change as a chunk of its own.
  const theirs = await folder(t);
  for (const [id, files] of Object.entries({ [handle.documentId]: { snapshot: [Automerge.save(doc)], incremental: [Buffer.concat(chunks)] },
    [documentId(7)]: { snapshot: [Automerge.save(Automerge.from({ seven: 7 }))] } })) {
    for (const [kind, all] of Object.entries(files)) {
      const at = join(theirs, id.slice(0, 2), id.slice(2), kind);
      await mkdir(at, { recursive: true });
      for (const [n, data] of all.entries()) await writeFile(join(at, `chunk-${n}`), data);
    }
  }
  const imported = fails(relay, 'import', theirs, '--json');
  const answer = JSON.parse(imported.stdout);
  assert.equal(answer.refused.length, 1, imported.stdout);
  assert.match(answer.refused[0].reason, /^change [0-9a-f]{64} of actor bb: its operations (cannot be applied|are not encoded as automerge does it)/);
  assert.deepEqual([answer.new, answer.newer], [1, 1], "the first of the two changes is good");
  assert.equal((await relay.client(t).repo.find(url(documentId(7)))).doc().seven, 7);
  // A backup that was tampered with.
  const index = JSON.parse(await readFile(join(backup, 'backup.json'), 'utf8'));
  const poison = bytesOf(doc, chunks);
  const sha256 = createHash('sha256').update(poison).digest('hex');
  const id = handle.documentId;
  await writeFile(join(backup, 'documents', id.slice(0, 2), id.slice(2), 'snapshot', sha256), poison);
  index.documents[id] = { ...index.documents[id], sha256, bytes: poison.length };
  await writeFile(join(backup, 'backup.json'), JSON.stringify(index));
  assert.equal(fails(relay, 'fsck', backup).status, 4);
  const restored = fails(relay, 'restore', backup, '--json');
  assert.deepEqual(JSON.parse(restored.stdout).refused.map(({ place }) => place), [id]);
  for (const one of [handle, more]) await assertIntact(t, relay, one, honest);
});

test('a new served bundle with such changes is refused, and the last good one is kept', async t => {
  const at = await folder(t);
  const file = join(at, 'app.tonk');
  const [root, other] = [documentId(1), documentId(2)];
  const first = Automerge.from({ text: 'precious' });
  await writeFile(file, bundle({ [root]: first, [other]: { n: 1 } }));
  const relay = await Relay.start(t, { bundle: { path: `"${file}"` } });
  const client = relay.client(t);
  const handle = await client.repo.find(url(root));
  const etag = async () => (await fetch(`${relay.url}/.manifest.tonk`)).headers.get('etag');
  const before = await etag();
  const { evil } = poisonedChanges(first);
  for (const [name, chunks] of Object.entries(evil)) {
    const logged = relay.log.length;
    await writeFile(file, bundle({ [other]: { n: name } }, { rootId: root }, { [entry(root)]: bytesOf(first, chunks) }));
    await until(`${name} is refused`, () => relay.log.includes(`document ${root}: its changes`, logged));
    assert.equal(await etag(), before, name);
  }
  handle.change(doc => { doc.mine = 1; });
  await saved(client, handle);
  await writeFile(file, bundle({ [root]: Automerge.change(first, doc => { doc.second = 2; }), [other]: { n: 1 } }));
  await until('a good one is served and merged', async () => await etag() !== before && handle.doc().second === 2);
  await assertIntact(t, relay, handle, client);
});

test('a stored chunk that makes a document unreadable is quarantined with the changes that build on it', async t => {
  const relay = await Relay.start(t);
  const honest = relay.client(t);
  const [handle, leaping] = [await share(honest, { text: 'precious' }), await share(honest, { text: 'precious' })];
  const backup = join(await folder(t), 'backup');
  await close(honest);
  await relay.stop();
  const id = handle.documentId;
  const doc = Automerge.load(save(handle));
  const evil = poisonedChanges(doc).evil.forgetsItself;
  // Changes that an honest client made on top of it.
  const above = Automerge.change(Automerge.applyChanges(Automerge.clone(doc), evil)[0], doc => { doc.above = 1; });
  const files = { evil: Buffer.concat(evil), above: Automerge.getLastLocalChange(above), honest: Automerge.getLastLocalChange(Automerge.change(Automerge.clone(doc), doc => { doc.beside = 1; })) };
  await mkdir(join(filesOf(relay, id), 'incremental'), { recursive: true });
  for (const [name, data] of Object.entries(files)) await writeFile(join(filesOf(relay, id), 'incremental', name), data);
  const far = poisonedChanges(Automerge.load(save(leaping))).evil.leapsFar;
  await mkdir(join(filesOf(relay, leaping.documentId), 'incremental'), { recursive: true });
  await writeFile(join(filesOf(relay, leaping.documentId), 'incremental', 'far'), Buffer.concat(far));

  const check = fails(relay, 'fsck');
  assert.equal(check.status, 4);
  assert.match(check.stdout, new RegExp(`${id}/incremental/evil`));
  assert.match(check.stdout, new RegExp(`${id}/incremental/above.*depends on change`));
  assert.match(check.stdout, new RegExp(`${leaping.documentId}.*use the operation number 300000000`), 'it is named, and served');
  const copied = fails(relay, 'backup', backup);
  assert.equal(copied.status, 1);
  assert.match(copied.stdout, new RegExp(`not copied:.*${id}/incremental/evil`));

  await relay.start();
  const reader = relay.client(t);
  const read = await reader.repo.find(handle.url);
  // The first of the two changes of the bad chunk is valid.
  assert.deepEqual({ ...read.doc() }, { text: 'precious', a: null, beside: 1 });
  const warnings = relay.log.split('\n').filter(line => line.includes('WARN') && line.includes(id));
  assert.equal(warnings.length, 1, relay.log);
  assert.match(warnings[0], /tonk-relay quarantine list/);
  const aside = json(relay, 'quarantine', 'list');
  assert.deepEqual(aside.map(({ path }) => path.split('/').at(-1)).sort(), ['above', 'evil']);
  await saved(reader, read);
  await assertIntact(t, relay, read, reader);
  // A quarantined chunk can be released; it is quarantined again while it is invalid.
  relay.command('quarantine', 'release', aside.find(({ path }) => path.endsWith('above')).path);
  await relay.restart();
  assert.deepEqual({ ...(await relay.client(t).repo.find(handle.url)).doc() }, { text: 'precious', a: null, beside: 1, after: 'an edit' });
});

test('the valid part of a damaged stored file is kept', async t => {
  const relay = await Relay.start(t);
  const honest = relay.client(t);
  const handle = await share(honest, { text: 'precious' });
  await close(honest);
  await relay.stop();
  const at = join(filesOf(relay, handle.documentId), 'snapshot');
  const [name] = await readdir(at);
  const doc = Automerge.load(save(handle));
  await writeFile(join(at, name), bytesOf(doc, poisonedChanges(doc).evil.forgetsItself));
  await relay.start();
  for (let n = 0; n < 2; n++) {
    assert.deepEqual({ ...(await relay.client(t).repo.find(handle.url)).doc() }, { text: 'precious', a: null });
    await relay.restart();
  }
  assert.equal(json(relay, 'quarantine', 'list').length, 1);
  await cp(relay.documents, join(relay.at, 'copy'), { recursive: true });
});

test('honest documents are not refused as decompression bombs', async t => {
  const relay = await Relay.start(t);
  const client = relay.client(t);
  const big = {
    canvas: { pixels: new Uint8Array(4.5 * 2 ** 20) },
    silence: { samples: new Uint8Array(40 * 2 ** 20) },
    padded: { file: new Uint8Array(8 * 2 ** 20).fill(255, 0, 1000) },
    text: { text: new Automerge.ImmutableString('a'.repeat(20_000_000)) },
  };
  for (const [name, contents] of Object.entries(big)) {
    const handle = await share(client, contents);
    const reader = relay.client(t);
    const read = await until(name, () => reader.repo.find(handle.url).catch(() => undefined));
    assert.equal(Object.values(read.doc())[0].length ?? String(Object.values(read.doc())[0]).length, Object.values(contents)[0].length ?? 20_000_000);
    await close(reader);
    const body = bundle({ [documentId(crypto.getRandomValues(new Uint8Array(16)))]: contents });
    assert.equal((await upload(relay, body)).status, 200, name);
  }
  // A log that grows by many changes.
  const log = await share(client, { log: '' });
  const line = n => `2026-11-26T12:00:${String(n % 60).padStart(2, '0')}Z INFO request handled path=/api/items/${n} status=200 took=12ms\n`;
  let length = 0;
  for (let n = 0; length < 700_000; n++) {
    const lines = Array.from({ length: 30 }, (_, m) => line(30 * n + m)).join('');
    log.change(doc => { Automerge.splice(doc, ['log'], length, 0, lines); });
    length += lines.length;
    if (n % 20 === 0) await saved(client, log);
  }
  await saved(client, log);
  const reader = relay.client(t);
  assert.equal((await reader.repo.find(log.url)).doc().log.length, length);
  assert.equal(await relay.metric('tonk_relay_documents_refused_total{reason="max_document"}'), 0);
  // One change with more operations than the limit allows is refused, and raising the limit helps.
  await relay.stop();
  relay.config = { sync: { max_inflated: '"8MiB"' } };
  await relay.start();
  const writer = relay.client(t, { retry: 100 });
  const list = writer.repo.create({ list: Array(100_000).fill(null) });
  await until('it is refused', () => /unpacks to more than 8MiB \(sync\.max_inflated\): \d+ operations or more, at least \d+ MiB/.test(relay.log));
  await relay.stop();
  relay.config = {};
  await relay.start();
  await saved(writer, list);
});
