// Commands that root runs on folders of another user: files that this user plants there must not be
// followed, block the command, or be read without end.
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, chownSync, linkSync, lchownSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { Relay, BINARY, atEnd, bundle, documentId, folder, upload } from './relay.mjs';

const NOBODY = 65534;
const own = path => lchownSync(path, NOBODY, NOBODY);
const ownAll = path => spawnSync('chown', ['-hR', `${NOBODY}:${NOBODY}`, path]);

// Each plants something at `path`; `secret` is a file that only root may read.
const PLANTS = {
  'a link': (path, secret) => symlinkSync(secret, path),
  'a hard link': (path, secret) => linkSync(secret, path),
  'a FIFO': path => spawnSync('mkfifo', [path]),
  'a link to an endless file': path => symlinkSync('/dev/zero', path),
  'a huge file': path => { writeFileSync(path, ''); truncateSync(path, 2 ** 43); },
};

/**
 * A stopped relay whose folders belong to another user, with an uploaded bundle, and a file that
 * only root may read.
 */
async function setUp(t) {
  if (process.getuid() !== 0) {
    t.skip('needs root: for other users there is nothing to borrow');
    return {};
  }
  const at = await folder(t);
  chmodSync(at, 0o755);
  // A document, so that a command that reads the file as one accepts it.
  const secret = join(at, 'secret');
  writeFileSync(secret, Automerge.save(Automerge.from({ secret: 'kept from others' })), { mode: 0o600 });
  const tokens = join(at, 'state/tokens');
  const relay = new Relay(join(at, 'relay'), { auth: { mode: '"open"', tokens: `"${tokens}"` } });
  atEnd(t, () => relay.end());
  await relay.start();
  const root = documentId(1);
  assert.equal((await upload(relay, bundle({ [root]: { n: 1 } }))).status, 200);
  await relay.stop();
  mkdirSync(join(at, 'state'));
  ownAll(join(at, 'state'));
  ownAll(relay.documents);
  ownAll(join(relay.at, 'bundles'));
  const before = { data: readFileSync(secret), ...facts(secret) };
  const run = (...words) => {
    // With little memory, so that reading without a limit fails.
    const line = 'ulimit -v 4000000; exec timeout 10 "$@"';
    const all = ['-c', line, 'bash', BINARY, ...words, '--config', join(relay.at, 'tonk-relay.toml')];
    const { status, stdout, stderr } = spawnSync('bash', all, { encoding: 'utf8' });
    assert.ok(status !== 124 && status < 128, `${words.join(' ')}: ${status} ${stderr}`);
    assert.doesNotMatch(stdout + stderr, /kept from others/);
    assert.deepEqual({ data: readFileSync(secret), ...facts(secret) }, before, `the secret is as it was after ${words.join(' ')}`);
    return { status, said: stdout + stderr };
  };
  return { at, relay, root, secret, tokens, run };
}

const facts = path => {
  const { mode, uid, gid } = statSync(path);
  return { mode, uid, gid };
};

/** A folder of the other user with something planted at `path`. */
function plant(at, path, kind, secret) {
  const file = join(at, path);
  rmSync(file, { force: true });
  mkdirSync(dirname(file), { recursive: true });
  PLANTS[kind](file, secret);
  ownAll(at);
  if (kind === 'a hard link') chownSync(secret, 0, 0);
}

const ID = documentId(9);
const CHUNK = `${ID.slice(0, 2)}/${ID.slice(2)}/snapshot/a`;

// The command, where things are planted for it, whether it fails, and its message if so.
const CASES = [
  ['import', 'st/orage-adapter-id', true], ['import', 'backup.json', true], ['import', '.journal/journal.sqlite', true],
  ['import', CHUNK, undefined],
  ['fsck', 'backup.json', true], ['fsck', '.journal/journal.sqlite', true], ['fsck', CHUNK, undefined],
  ['restore', 'backup.json', true], ['backup', 'backup.json', true],
];

test('commands of root read no file that another user planted', async t => {
  const { at, secret, run } = await setUp(t);
  if (!at) return;
  let n = 0;
  for (const [command, path, fails] of CASES) {
    for (const kind of Object.keys(PLANTS)) {
      const planted = join(at, `planted-${n++}`);
      plant(planted, path, kind, secret);
      const { status, said } = run(command, planted);
      if (fails) {
        assert.notEqual(status, 0, `${command} with ${kind} as ${path}: ${said}`);
        // A backup to a folder of the service's user runs as that user, who may not read the secret.
        const refused = command === 'backup'
          ? /Permission denied|symbolic link|not a regular file|larger than/
          : /symbolic link|hard link|not a regular file|larger than|not a database/;
        assert.match(said, refused, `${command} with ${kind} as ${path}`);
      }
    }
  }
  assert.notEqual(run('doc', ID).status, 0, 'nothing was taken over');
});

test('files that are planted in the storage folder do not block commands of root', async t => {
  const { at, relay, root, secret, run } = await setUp(t);
  if (!at) return;
  const evil = join(at, 'evil');
  const inStorage = ['.format', '.replacing', 'st/orage-adapter-id', '.journal/journal.sqlite', `.deleted/${ID}`];
  for (const kind of ['a FIFO', 'a link', 'a link to an endless file']) {
    for (const path of inStorage) {
      plant(relay.documents, path, kind, secret);
      run('backup', join(at, 'backup'));
      rmSync(join(relay.documents, path));
    }
    plant(evil, 'backup.json', kind, secret);
    const noted = { [evil]: { folder: evil, at: '2026-01-01T00:00:00Z' } };
    writeFileSync(join(relay.documents, '.backups'), JSON.stringify(noted));
    const { status, said } = run('doc', 'delete', ID);
    assert.equal(status, 0, said);
    assert.match(said, /may contain \(it cannot be read here\)/);
    run('doc', 'undelete', ID);
  }
  // Without the planted files the relay works.
  assert.equal(run('fsck').status, 0);
  assert.equal(run('doc', root).status, 0);
});

test('commands of root write nothing to a path that another user chose', async t => {
  const { at, root, secret, tokens, run } = await setUp(t);
  if (!at) return;
  const out = join(at, 'state/app.tonk');
  for (const kind of ['a link', 'a FIFO']) {
    for (const [path, ...words] of [[out, 'export', root, out, '--force'], [tokens, 'token', 'add', 'phone', '--scope', 'upload']]) {
      rmSync(path, { force: true });
      PLANTS[kind](path, secret);
      own(path);
      const { status, said } = run(...words);
      assert.notEqual(status, 0, `${words[0]} with ${kind}: ${said}`);
      assert.match(said, /of another user; root does not follow it|not a regular file/);
    }
  }
  // A link to another user's file is replaced by the new file; the other file is unchanged.
  rmSync(out);
  PLANTS['a hard link'](out, secret);
  assert.equal(run('export', root, out, '--force').status, 0);
  // An existing file keeps its owner and its mode.
  rmSync(out);
  writeFileSync(out, '');
  own(out);
  chmodSync(out, 0o640);
  assert.equal(run('export', root, out, '--force').status, 0);
  assert.deepEqual([statSync(out).uid, statSync(out).mode & 0o777], [NOBODY, 0o640]);
  // A backup to a folder of the service's user runs as that user: a link there leads to what that user may read alone.
  const [backup, precious] = [join(at, 'backup'), join(at, 'precious')];
  mkdirSync(backup);
  own(backup);
  assert.equal(run('backup', backup).status, 0);
  assert.equal(statSync(join(backup, 'backup.json')).uid, NOBODY);
  mkdirSync(precious, { mode: 0o700 });
  writeFileSync(join(precious, ID), '{}');
  rmSync(join(backup, 'deleted'), { recursive: true, force: true });
  symlinkSync(precious, join(backup, 'deleted'));
  own(join(backup, 'deleted'));
  assert.match(run('backup', backup).said, /deleted: Permission denied/);
  assert.ok(statSync(join(precious, ID)));
});

test('a file that is replaced while root exports to it discloses nothing', async t => {
  const { at, root, secret, run } = await setUp(t);
  if (!at) return;
  const out = join(at, 'state/app.tonk');
  writeFileSync(out, '');
  own(out);
  const swap = `const fs = require('node:fs'); const out = ${JSON.stringify(out)};
    for (;;) for (const [kind, to] of [['link', ${JSON.stringify(secret)}], ['file']]) try {
      fs.rmSync(out + '.new', { force: true });
      if (kind === 'link') fs.symlinkSync(to, out + '.new'); else fs.writeFileSync(out + '.new', '');
      fs.renameSync(out + '.new', out);
    } catch {}`;
  const swapping = spawn(process.execPath, ['-e', swap], { uid: NOBODY, gid: NOBODY, stdio: 'ignore' });
  atEnd(t, () => swapping.kill('SIGKILL'));
  // Each is checked for the secret afterwards.
  for (let n = 0; n < 5; n++) run('export', root, out, '--force');
});
