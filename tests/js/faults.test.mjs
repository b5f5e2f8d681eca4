// Failing disks: real errors of a read-only file system, and of system calls that strace makes
// fail.
import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { chmod, copyFile, mkdir, mkdtemp, readFile, readdir, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { cbor } from '@automerge/automerge-repo';
import { clock } from './program.mjs';
import { BINARY, Relay, atEnd, bundle, close, documentId, fill, folder, saved, share, smallDisk, until } from './relay.mjs';

/** Stalls the disk of a running relay until the returned function is called. */
const stall = (t, relay, paths) => tamper(t, relay, 'fsync,fdatasync,pwrite64', 'delay_enter=60000000', paths);

/**
 * Makes system calls of a running relay fail until the returned function is called; with `-P` only
 * those on these paths.
 */
const inject = (t, relay, calls, error, paths) => tamper(t, relay, calls, `error=${error}`, paths);

async function tamper(t, relay, calls, how, paths = []) {
  const only = paths.flatMap(path => ['-P', path]);
  const strace = spawn('strace', ['-f', '-qq', '-o', '/dev/null', ...only, '-p', String(relay.child.pid),
    '-e', `trace=${calls}`, '-e', `inject=${calls}:${how}`]);
  const ended = once(strace, 'exit');
  const end = async () => { strace.kill('SIGINT'); await ended; };
  atEnd(t, end);
  await until('strace is attached', async () => {
    if (strace.exitCode !== null) throw new Error('strace did not attach');
    const tasks = await readdir(`/proc/${relay.child.pid}/task`);
    const traced = await Promise.all(tasks.map(async task => {
      const status = await readFile(`/proc/${relay.child.pid}/task/${task}/status`, 'utf8').catch(() => '');
      return /TracerPid:\t[1-9]/.test(status) || status === '';
    }));
    return traced.every(Boolean);
  });
  return end;
}

const canTrace = process.getuid() === 0 && spawnSync('strace', ['-V']).status === 0;
const skip = canTrace ? false : 'needs root and strace';
const status = async relay => (await fetch(`${relay.url}/readyz`)).status;
const degraded = relay => relay.command('status').split('\n').filter(line => line.startsWith('degraded')).join('\n');

for (const [what, calls, error] of [
  ['an I/O error on write', 'pwrite64', 'EIO'],
  ['an I/O error on fsync', 'fsync,fdatasync', 'EIO'],
  ['a file system that has become read-only', 'pwrite64,openat,unlink,rename', 'EROFS'],
]) {
  test(`${what}: the relay is not ready, serves changes from memory, and stores them afterwards`, { skip }, async t => {
    const relay = await Relay.start(t);
    const [client, reader] = [relay.client(t), relay.client(t)];
    const handle = await share(client, { n: 1 });
    const read = await reader.repo.find(handle.url);
    const journal = join(relay.documents, '.journal');
    const files = ['journal.sqlite', 'journal.sqlite-wal'].map(name => join(journal, name));
    const end = await inject(t, relay, calls, error, files);
    handle.change(doc => { doc.n = 2; });
    await until('not ready', async () => await status(relay) === 503);
    await until('it is served meanwhile', () => read.doc().n === 2);
    assert.ok(await relay.metric('tonk_relay_storage_failures_total{operation="put"}') > 0);
    assert.ok(await relay.metric('tonk_relay_storage_unsaved_bytes') > 0);
    await end();
    await until('ready', async () => await status(relay) === 200);
    await saved(client, handle);
    await relay.kill();
    await Promise.all([close(client), close(reader)]);
    await relay.start();
    assert.equal((await relay.client(t).repo.find(handle.url)).doc().n, 2);
  });
}

test('when a file system stays read-only saved changes are kept, and clients send the rest again', async t => {
  if (process.getuid() !== 0) return t.skip('needs root, to mount');
  const image = join(await mkdtemp(join(tmpdir(), 'tonk-relay-image-')), 'ext4');
  const at = await mkdtemp(join(tmpdir(), 'tonk-relay-ext4-'));
  await writeFile(image, Buffer.alloc(32 << 20));
  const mount = () => spawnSync('mount', ['-o', 'loop', image, at]).status === 0;
  if (spawnSync('mkfs.ext4', ['-q', image]).status !== 0 || !mount()) return t.skip('no ext4 on a loop device here');
  atEnd(t, async () => {
    spawnSync('umount', ['--lazy', at]);
    await rm(image);
  });
  const relay = await Relay.start(t, { drain_timeout: '"2s"' }, at);
  const [client, reader] = [relay.client(t), relay.client(t)];
  const handle = await share(client, { n: 1 });
  const read = await reader.repo.find(handle.url);
  // The kernel does this when the disk fails.
  execFileSync('mount', ['-o', 'remount,abort', at]);
  handle.change(doc => { doc.n = 2; });
  await until('it is served meanwhile', () => read.doc().n === 2);
  await until('not ready', async () => await status(relay) === 503);
  const { code } = await relay.stop();
  assert.equal(code, 1);
  assert.match(relay.log, /may not be durable/);
  await close(reader);

  execFileSync('umount', [at]);
  // Exit code 1: it has repaired the file system.
  assert.ok(spawnSync('e2fsck', ['-p', image]).status <= 1);
  assert.ok(mount());
  await relay.start();
  const fresh = relay.client(t);
  const found = await fresh.repo.find(handle.url);
  assert.ok(found.doc().n >= 1);
  await until('the writer has sent it again', () => found.doc().n === 2);
});

test('an unreadable document is an error to its clients and not unavailable, and others are served', { skip }, async t => {
  const relay = await Relay.start(t, { sync: { idle_unload: '"50ms"' } });
  const writer = relay.client(t);
  const [bad, good] = [await share(writer, { n: 'bad' }), await share(writer, { n: 'good' })];
  relay.command('checkpoint');
  await close(writer);
  await until('they are unloaded', async () => await relay.metric('tonk_relay_rooms{state="live"}') === 0);
  const id = bad.documentId;
  const folder = join(relay.documents, id.slice(0, 2), id.slice(2));
  const [kind] = await readdir(folder);
  const [name] = await readdir(join(folder, kind));
  const end = await inject(t, relay, 'read', 'EIO', [join(folder, kind, name)]);

  const client = relay.client(t);
  const told = [];
  const receive = client.adapter.receiveMessage.bind(client.adapter);
  client.adapter.receiveMessage = bytes => {
    told.push(cbor.decode(new Uint8Array(bytes)));
    receive(bytes);
  };
  const finding = client.repo.find(bad.url);
  assert.equal((await client.repo.find(good.url)).doc().n, 'good');
  await until('the error', () => told.some(({ type, message }) => type === 'error' && message.includes(id)));
  assert.ok(!told.some(({ type }) => type === 'doc-unavailable'));
  assert.match(degraded(relay), /documents: 1 cannot be read: cannot read .*Input\/output error/);
  assert.equal(await status(relay), 200);
  assert.ok(await relay.metric('tonk_relay_storage_failures_total{operation="load"}') > 0);
  assert.match(spawnSync(BINARY, ['fsck', '--config', join(relay.at, 'tonk-relay.toml')],
    { encoding: 'utf8' }).stdout, new RegExp(`unreadable: ${id}`));
  await end();
  assert.equal((await finding).doc().n, 'bad');
  assert.equal(degraded(relay), '');
});

test('other documents are served despite a folder without permission and foreign files', async t => {
  const relay = await Relay.start(t, { sync: { idle_unload: '"50ms"' } });
  const writer = relay.client(t);
  const [closed, good] = [await share(writer, { n: 'closed' }), await share(writer, { n: 'good' })];
  await close(writer);
  await relay.stop();
  const id = closed.documentId;
  const folder = join(relay.documents, id.slice(0, 2), id.slice(2));
  await writeFile(join(relay.documents, 'notes.txt'), 'somebody put this here');
  await mkdir(join(relay.documents, 'lost+found'));
  await mkdir(join(folder, 'backup-of-mine'), { recursive: true });
  await writeFile(join(folder, 'snapshot.bak'), 'nothing of automerge');
  // Root can read everything, so the relay runs as another user.
  const isRoot = process.getuid() === 0;
  if (isRoot) {
    relay.binary = join(relay.at, 'tonk-relay');
    await copyFile(BINARY, relay.binary);
    execFileSync('chown', ['-R', '65534:65534', relay.at]);
    relay.as = { uid: 65534, gid: 65534 };
  }
  await relay.start();
  await chmod(folder, 0o000);
  atEnd(t, () => chmod(folder, 0o700).catch(() => {}));
  const client = relay.client(t);
  const finding = client.repo.find(closed.url);
  assert.equal((await client.repo.find(good.url)).doc().n, 'good');
  await until('it is named', () => /documents: 1 cannot be read: .*Permission denied/.test(degraded(relay)));
  await chmod(folder, 0o700);
  assert.equal((await finding).doc().n, 'closed');
  assert.equal(await readFile(join(relay.documents, 'notes.txt'), 'utf8'), 'somebody put this here');
});

test('complete records of a truncated or torn journal are kept', async t => {
  for (const cut of [1, 100, 5000]) {
    const relay = await Relay.start(t);
    const client = relay.client(t);
    const handle = await share(client, { n: 0 });
    relay.command('checkpoint');
    for (let n = 1; n <= 10; n++) {
      handle.change(doc => { doc.n = n; });
      await saved(client, handle);
    }
    await relay.kill();
    await close(client);
    const wal = join(relay.documents, '.journal/journal.sqlite-wal');
    const { length } = await readFile(wal);
    await truncate(wal, Math.max(length - cut, 0));
    await relay.start();
    const { n } = (await relay.client(t).repo.find(handle.url)).doc();
    assert.ok(n >= 0 && n <= 10);
    if (cut === 1) assert.ok(n >= 9, `${n}`);
    assert.match(relay.command('fsck'), /: 0 damages/);
    await relay.kill();
  }
});

test('edits are sent and saved while the clock jumps by years in both directions', { skip }, async t => {
  if (!clock) return t.skip('needs libfaketime');
  const at = await mkdtemp(join(tmpdir(), 'tonk-relay-clock-'));
  const file = join(at, 'clock');
  await writeFile(file, '+0');
  const relay = new Relay(at);
  relay.env = clock({ FAKETIME_TIMESTAMP_FILE: file, FAKETIME_NO_CACHE: '1' });
  atEnd(t, () => relay.end());
  await relay.start();
  const client = relay.client(t);
  const handle = await share(client, { n: 0 });
  for (const [n, jump] of ['+20y', '-20y', '+0'].entries()) {
    // Written atomically: libfaketime ends a process that reads an empty file.
    await writeFile(`${file}.new`, jump);
    await rename(`${file}.new`, file);
    handle.change(doc => { doc.n = n; });
    await saved(client, handle);
    assert.equal(await status(relay), 200);
  }
  assert.match(relay.command('checkpoint'), /the folders now contain all changes/);
  await relay.stop();
  await close(client);
  await relay.start();
  assert.equal((await relay.client(t).repo.find(handle.url)).doc().n, 2);
});

test('the relay keeps answering during a full disk, stalled storage and a reached limit', { skip }, async t => {
  // After this time without an answer systemd's watchdog would end the relay.
  const watchdog = 1_000_000;
  const probes = relay => relay.metric('tonk_relay_unknown_requests_total{outcome="probe"}');
  /** For ten times as long, with four requests at a time. */
  const assertKeepsAnswering = async relay => {
    const before = await probes(relay);
    await until('it answers', async () => await probes(relay) >= before + 40, 40);
    assert.equal(await relay.metric('tonk_relay_probe_failures_total'), 0);
    assert.equal(relay.ended, undefined);
  };
  const relay = new Relay(await mkdtemp(join(tmpdir(), 'tonk-relay-test-')), {
    limits: { connections: 3 }, storage: { max_unsaved: '"64KiB"' }, sync: { receive_queue: '"1MiB"' },
  });
  atEnd(t, () => relay.end());
  relay.env = { WATCHDOG_USEC: String(watchdog) };
  await relay.start();
  const writer = relay.client(t);
  const handle = await share(writer, { n: 1 });
  const journal = join(relay.documents, '.journal');
  const files = ['journal.sqlite', 'journal.sqlite-wal'].map(name => join(journal, name));

  const full = await inject(t, relay, 'pwrite64', 'ENOSPC', files);
  handle.change(doc => { doc.n = 2; });
  await until('not ready', async () => await status(relay) === 503);
  await assertKeepsAnswering(relay);
  await full();
  await until('ready', async () => await status(relay) === 200);

  const stalled = await stall(t, relay, files);
  handle.change(doc => { doc.n = 3; });
  await until('it waits', async () => await relay.metric('tonk_relay_storage_unsaved_bytes') > 0);
  await assertKeepsAnswering(relay);
  await stalled();

  const others = [1, 2, 3, 4].map(() => relay.client(t));
  await until('one is refused', async () => await relay.metric('tonk_relay_refused_total{reason="connections"}') > 0);
  await assertKeepsAnswering(relay);
  await Promise.all(others.map(close));
});

test('a document is blocked at once on a full disk, and its clients keep working with others', { skip }, async t => {
  const relay = await Relay.start(t);
  const [client, reader] = [relay.client(t), relay.client(t)];
  const [handle, other] = [await share(client, { n: 1 }), await share(client, { n: 1 })];
  const [copy, otherCopy] = [await reader.repo.find(handle.url), await reader.repo.find(other.url)];
  const end = await inject(t, relay, 'pwrite64,write', 'ENOSPC',
    [relay.documents, ...['journal.sqlite', 'journal.sqlite-wal'].map(name => join(relay.documents, '.journal', name))]);
  handle.change(doc => { doc.n = 2; });
  await until('it is forwarded', () => copy.doc().n === 2);
  await until('not ready', async () => await status(relay) === 503);
  spawnSync(BINARY, ['doc', 'block', handle.url, '--config', join(relay.at, 'tonk-relay.toml')]);
  // More than the room would keep.
  for (let n = 3; n < 300; n += 1) handle.change(doc => { doc.n = n; });
  other.change(doc => { doc.n = 2; });
  await until('the other is forwarded', () => otherCopy.doc().n === 2);
  await end();
  await until('ready', async () => await status(relay) === 200);
  assert.equal(copy.doc().n, 2, 'no client received changes made after the block');
  relay.command('doc', 'unblock', handle.url);
  await until('it arrives completely', () => copy.doc().n === 299);
  await saved(client, handle);
});

test('on a full disk edits, presence and other documents continue, and everything is stored once there is room', async t => {
  const at = await smallDisk(t, 8);
  if (!at) return;
  const app = join(await folder(t), 'app.tonk');
  const seeds = [documentId(1), documentId(2)];
  await writeFile(app, bundle(Object.fromEntries(seeds.map(id => [id, { n: 0 }]))));
  const relay = await Relay.start(t, { bundle: { path: `"${app}"` }, storage: { journal_size: '"1MiB"' } }, at);
  const writer = relay.client(t);
  const readers = Array.from({ length: 10 }, () => relay.client(t));
  const stored = await share(writer, { n: 0 });
  const urls = [stored.url, ...seeds.map(id => `automerge:${id}`)];
  const open = client => Promise.all(urls.map(url => client.repo.find(url)));
  const [handles, ...copies] = await Promise.all([writer, ...readers].map(open));
  const heard = copies.map(([copy]) => {
    const messages = [];
    copy.on('ephemeral-message', ({ message }) => messages.push(message));
    return messages;
  });

  const ballast = await fill(at);
  for (let n = 1; n <= 20; n += 1) {
    for (const handle of handles) handle.change(doc => { doc.n = n; });
    // A reader that also writes must receive the others' changes all the same.
    for (const copy of copies[n % 10]) copy.change(doc => { doc[`reader-${n % 10}`] = n; });
    handles[0].broadcast(n);
    await until(`round ${n} has reached every client`, () => [handles, ...copies].every(documents =>
      documents.every(copy => copy.doc().n === n && copy.doc()[`reader-${n % 10}`] === n)));
    await until('presence', () => heard.every(messages => messages.includes(n)));
    if (n % 10 === 0) {
      const unknown = documentId(100 + n);
      await assert.rejects(writer.repo.find(`automerge:${unknown}`), /unavailable/, 'the request for an unknown document is answered');
    }
  }
  assert.equal(await status(relay), 503, 'nothing could be stored');
  assert.equal(await relay.metric('tonk_relay_connections'), 11, 'nobody was closed');

  await rm(ballast);
  await until('ready', async () => await status(relay) === 200);
  for (const handle of handles) await saved(writer, handle);
  for (const copy of copies[1]) await saved(readers[1], copy);
  await relay.kill();
  await Promise.all([writer, ...readers].map(close));
  relay.config = {};
  await relay.start();
  const found = await open(relay.client(t));
  for (const handle of found) assert.deepEqual(handle.doc(), handles[found.indexOf(handle)].doc());
});
