// A relay that keeps its documents in PostgreSQL, with the real server.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes as nodeBytes } from 'node:crypto';
import { chmod, chown, copyFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import test from 'node:test';
import { parseAutomergeUrl } from '@automerge/automerge-repo';
import { Postgres, Wire, skip } from './postgres.mjs';
import { BINARY, Relay, atEnd, close, fill, folder, ids, saved, share, smallDisk, until } from './relay.mjs';
import { KEYS, Store, skip as skipStore } from './store.mjs';

/** Bytes that do not compress. Text would be an operation for each character. */
const randomBytes = size => new Uint8Array(nodeBytes(size));

/** 200 while the relay is ready, 503 while it is not. */
const ready = async relay => (await fetch(`${relay.url}/readyz`)).status;

test('a relay without local files has all documents', { skip }, async t => {
  const postgres = await Postgres.start(t);
  const relay = await Relay.start(t, postgres.config());
  const writer = relay.client(t);
  const handle = await share(writer, { text: 'first' });
  const large = await share(writer, { data: randomBytes(3 << 20) });
  for (let n = 0; n < 50; n += 1) {
    handle.change(doc => { doc[`key${n}`] = n; });
    if (n % 10 === 0) await saved(writer, handle);
  }
  await saved(writer, handle);
  const id = relay.command('status', '--json');
  assert.equal((await relay.stop()).code, 0, relay.log);
  await close(writer);

  // Another machine: nothing of the first relay's folder is there.
  const other = await Relay.start(t, postgres.config());
  const reader = other.client(t);
  const found = await reader.repo.find(handle.url);
  assert.deepEqual(found.doc(), handle.doc());
  assert.equal((await reader.repo.find(large.url)).doc().data.length, 3 << 20);
  assert.equal(JSON.parse(other.command('status', '--json')).documents_live, 2, id);
  const [storageId] = Object.values(reader.repo.peerMetadataByPeerId).map(peer => peer.storageId);
  assert.equal(postgres.query('select storage_id from tonk_relay.meta', 'app'), storageId);
});

test('while the database is away, sync goes on and nothing is told as saved', { skip }, async t => {
  const postgres = await Postgres.start(t);
  const relay = await Relay.start(t, postgres.config({ cluster: { database: `"${postgres.url()}"`, timeout: '"1s"' } }));
  const [one, two] = [relay.client(t), relay.client(t)];
  const handle = await share(one, { n: 0 });
  const there = await two.repo.find(handle.url);
  for (const [away, back] of [['kill', 'start'], ['stop', 'start'], ['freeze', 'thaw']]) {
    await postgres.tell(away);
    const before = there.doc().n;
    handle.change(doc => { doc.n += 1; });
    await until(`${away}: the other client sees it`, () => there.doc().n === before + 1);
    // A new document waits.
    const fresh = one.repo.create({ made: away });
    await until(`${away}: the relay is not ready`, async () => await ready(relay) === 503);
    // It fails while the relay is not ready.
    const { stdout } = spawnSync(BINARY, ['status', '--config', join(relay.at, 'tonk-relay.toml')], { encoding: 'utf8' });
    assert.match(stdout, /storage: cannot (use|write to) the database app at \/tmp/);
    await assert.rejects(Promise.race([saved(one, handle), new Promise((_, reject) => setTimeout(reject, 500, new Error('not saved')))]), /not saved/);
    await postgres.tell(back);
    const start = Date.now();
    await saved(one, handle);
    await saved(one, fresh);
    t.diagnostic(`saved ${Date.now() - start} ms after ${back}`);
    assert.equal(await ready(relay), 200);
    assert.equal(relay.ended, undefined, 'without a restart');
  }
});

test('packets to the database are dropped: nothing is told as saved, and it is saved when they arrive again', { skip }, async t => {
  const postgres = await Postgres.start(t, ['-c', 'listen_addresses=127.0.0.78']);
  const wire = await Wire.start(t, '127.0.0.78');
  const cluster = { database: `"postgres://postgres@127.0.0.1:${wire.port}/app"`, timeout: '"1s"' };
  const relay = await Relay.start(t, postgres.config({ cluster }));
  const [one, two] = [relay.client(t), relay.client(t)];
  const handle = await share(one, { n: 0 });
  const there = await two.repo.find(handle.url);
  for (let round = 1; round <= 3; round += 1) {
    wire.down();
    handle.change(doc => { doc.n = round; });
    await until('the other client sees it', () => there.doc().n === round);
    await until('the relay is not ready', async () => await ready(relay) === 503);
    await assert.rejects(Promise.race([saved(one, handle), new Promise((_, reject) => setTimeout(reject, 500, new Error('not saved')))]), /not saved/);
    wire.up();
    const start = Date.now();
    await saved(one, handle);
    t.diagnostic(`saved ${Date.now() - start} ms after packets arrive again`);
    assert.equal(await ready(relay), 200);
  }
  assert.equal(relay.ended, undefined, 'without a restart');
});

test('everything that was told as saved is there after crashes of relay and database', { skip }, async t => {
  const postgres = await Postgres.start(t);
  const relay = await Relay.start(t, postgres.config({ storage: { commit_interval: '"5ms"' } }));
  const clients = Array.from({ length: 4 }, () => relay.client(t, { retry: 50 }));
  const handles = await Promise.all(clients.map(client => share(client, { edits: {} })));
  const told = handles.map(() => -1);
  let stopped = false;
  const writing = clients.map(async (client, n) => {
    for (let edit = 0; !stopped; edit += 1) {
      handles[n].change(doc => { doc.edits[edit] = randomBytes(edit % 20 === 0 ? 1_500_000 : 20); });
      if (edit % 3 === 0) {
        await saved(client, handles[n]).then(() => { told[n] = edit; }, () => {});
      }
    }
  });
  // A busy machine saves less between two crashes.
  for (let round = 0; round < 8 || (round < 80 && told.some(edit => edit <= 10)); round += 1) {
    await new Promise(resolve => setTimeout(resolve, 300));
    if (round % 2 === 0) {
      await postgres.tell('kill');
      await postgres.tell('start');
    } else {
      await relay.kill();
      await relay.start();
    }
  }
  stopped = true;
  await Promise.all(writing);
  const expected = [...told];
  await relay.kill();
  await Promise.all(clients.map(close));
  assert.ok(expected.every(edit => edit > 10), `edits: ${expected}`);

  const other = await Relay.start(t, postgres.config());
  const reader = other.client(t);
  for (const [n, handle] of handles.entries()) {
    const { edits } = (await reader.repo.find(handle.url)).doc();
    for (let edit = 0; edit <= expected[n]; edit += 1) assert.ok(edits[edit], `edit ${edit} of client ${n} was told as saved`);
  }
});

test('operators delete, block, back up and move documents as with a folder', { skip: skip || skipStore }, async t => {
  const postgres = await Postgres.start(t);
  const store = await Store.start(t);
  // A relay with a folder, whose documents move into the database.
  const old = await Relay.start(t);
  const writer = old.client(t);
  const [kept, gone] = [await share(writer, { name: 'kept' }), await share(writer, { name: 'gone' })];
  await close(writer);
  await old.stop();

  const relay = new Relay(await folder(t), postgres.config({ bundles: store.config() }));
  await writeFile(join(relay.at, 'aws-credentials'), KEYS);
  relay.env = { CREDENTIALS_DIRECTORY: relay.at, AWS_EC2_METADATA_DISABLED: 'true' };
  // The commands use the same keys.
  Object.assign(process.env, relay.env);
  atEnd(t, () => relay.end());
  await relay.start();
  relay.command('import', old.documents);
  const client = relay.client(t);
  assert.equal((await client.repo.find(kept.url)).doc().name, 'kept');
  const deleted = relay.command('doc', 'delete', gone.documentId, '--reason', 'asked for');
  assert.match(deleted, new RegExp(gone.documentId));
  await assert.rejects(client.repo.find(gone.url), /unavailable/);
  relay.command('doc', 'block', kept.documentId, '--reason', 'a test');
  assert.match(relay.command('doc', 'blocked'), /a test/);
  relay.command('doc', 'unblock', kept.documentId);

  assert.match(relay.command('fsck'), /^1 document in 1 chunk, \d+ bytes; 0 bundles: 0 damages, 0 notes\n$/);

  // Without a running relay the commands use the database themselves.
  await relay.stop();
  const backup = join(await folder(t), 'backup');
  relay.command('backup', backup);
  const refused = spawnSync(BINARY, ['doc', gone.documentId, '--config', join(relay.at, 'tonk-relay.toml')], { encoding: 'utf8' });
  assert.match(refused.stderr, /was deleted at .*: asked for/);
  assert.match(relay.command('doc', kept.documentId), /changes +1 by 1 actor/);
  const restored = await Relay.start(t);
  restored.command('restore', backup);
  const reader = restored.client(t);
  assert.equal((await reader.repo.find(kept.url)).doc().name, 'kept');
  await assert.rejects(reader.repo.find(gone.url), /unavailable/);
});

test('a process of the server is killed', { skip }, async t => {
  const postgres = await Postgres.start(t);
  const relay = await Relay.start(t, postgres.config());
  const client = relay.client(t);
  const handle = await share(client, { n: 0 });
  // The server ends all connections then, and recovers for some seconds, as after a crash.
  const pids = postgres.query("select pid from pg_stat_activity where application_name = 'tonk-relay'").split('\n');
  process.kill(Number(pids.at(-1)), 'SIGKILL');
  handle.change(doc => { doc.n = 1; });
  await saved(client, handle);
  assert.equal(relay.ended, undefined, 'without a restart');
  await relay.kill();
  const other = await Relay.start(t, postgres.config());
  assert.equal((await other.client(t).repo.find(handle.url)).doc().n, 1);
});

test('a dump is restored into another server', { skip }, async t => {
  const [first, second] = [await Postgres.start(t), await Postgres.start(t)];
  const relay = await Relay.start(t, first.config());
  const writer = relay.client(t);
  const handles = [await share(writer, { n: 1 }), await share(writer, { data: randomBytes(2 << 20) })];
  for (const handle of handles) await saved(writer, handle);
  const blocked = '4NMNnkMhL8jXrdJ9jamS58PAVdXu';
  relay.command('doc', 'block', blocked);
  const dump = execFileSync('pg_dump', ['-h', first.folder, '-U', 'postgres', 'app'], { maxBuffer: 64 << 20 });
  // What is written after the dump comes with the client.
  handles[0].change(doc => { doc.late = true; });
  await saved(writer, handles[0]);
  assert.equal((await relay.stop()).code, 0, relay.log);
  execFileSync('psql', ['-h', second.folder, '-U', 'postgres', '-d', 'app', '-qv', 'ON_ERROR_STOP=1'], { input: dump, stdio: ['pipe', 'ignore', 'inherit'] });

  relay.config = second.config();
  await relay.start();
  const reader = relay.client(t);
  await until('the client has brought what is newer', async () => (await reader.repo.find(handles[0].url)).doc().late);
  assert.equal((await reader.repo.find(handles[1].url)).doc().data.length, 2 << 20);
  assert.match(relay.command('doc', 'blocked'), new RegExp(blocked));
});

test('what a promoted standby lacks is stored again from the memory of the relay', { skip }, async t => {
  const postgres = await Postgres.start(t);
  const relay = await Relay.start(t, postgres.config());
  const writer = relay.client(t);
  const handle = await share(writer, { before: true });
  await postgres.tell('standby');
  for (let n = 0; n < 5; n += 1) {
    handle.change(doc => { doc[`later${n}`] = true; });
    await saved(writer, handle);
  }
  const large = await share(writer, { data: randomBytes(3 << 20) });
  // From now on only the relay has what the standby lacks.
  await close(writer);
  const stays = relay.client(t);
  const other = await share(stays, { n: 0 });
  await postgres.tell('promote');
  const stored = ({ documentId }) => {
    const hex = Buffer.from(parseAutomergeUrl(`automerge:${documentId}`).binaryDocumentId).toString('hex');
    return Number(postgres.query(`select count(*) from tonk_relay.chunk where document = '\\x${hex}'`, 'app'));
  };
  await until('it is stored again', () => stored(handle) > 1 && stored(large) > 0 && stored(other) > 0);
  assert.match(relay.log, /the database has lost commits that it had confirmed.* commits=[1-9]/);
  assert.equal(await relay.metric('tonk_relay_database_losses_total'), 1);
  // Nobody has to connect again to be told that a change is saved.
  other.change(doc => { doc.n = 1; });
  await saved(stays, other);
  await relay.kill();
  const next = await Relay.start(t, postgres.config());
  const reader = next.client(t);
  for (const shared of [handle, large, other]) {
    assert.deepEqual((await reader.repo.find(shared.url)).doc(), shared.doc());
  }
});

test('a database that is read-only, or without room, is waited for', { skip }, async t => {
  const disk = await smallDisk(t, 192);
  if (!disk) return;
  await chmod(disk, 0o755);
  const postgres = await Postgres.start(t, [], disk);
  const relay = await Relay.start(t, postgres.config());
  const [writer, reader] = [relay.client(t), relay.client(t)];
  const handle = await share(writer, { n: 0 });
  const copy = await reader.repo.find(handle.url);
  /** Sync goes on, `problem` is reported, and everything is saved once it has passed. */
  const outlives = async (problem, change, begin, end) => {
    await begin();
    handle.change(change);
    await until('sync goes on', () => copy.heads().join() === handle.heads().join());
    await until('it is reported', async () => await ready(relay) === 503);
    const status = spawnSync(BINARY, ['status', '--config', join(relay.at, 'tonk-relay.toml')], { encoding: 'utf8' });
    assert.match(status.stdout, problem);
    await end();
    const began = Date.now();
    await saved(writer, handle);
    t.diagnostic(`saved ${Date.now() - began} ms after it has passed`);
    assert.equal(await ready(relay), 200);
  };
  const set = statement => { postgres.query(statement); postgres.query('select pg_reload_conf()'); };
  await outlives(/read-only/, doc => { doc.n = 1; },
    () => set('alter system set default_transaction_read_only = on'),
    () => set('alter system reset default_transaction_read_only'));
  let ballast;
  await outlives(/No space left on device/, doc => { doc.data = randomBytes(600_000); },
    async () => { ballast = await fill(disk); }, () => rm(ballast));
});

test('a server on another machine needs a certificate and a password', { skip }, async t => {
  const at = await folder(t);
  const openssl = (...words) => execFileSync('openssl', words, { cwd: at, stdio: 'ignore' });
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  openssl('req', '-x509', ...curve, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=authority');
  openssl('req', '-x509', ...curve, '-keyout', 'key.pem', '-out', 'cert.pem', '-subj', '/CN=database', '-CA', 'ca.pem',
    '-CAkey', 'ca.key', '-addext', 'subjectAltName=IP:127.0.0.77', '-addext', 'basicConstraints=critical,CA:FALSE');
  await chmod(at, 0o755);
  const { uid, gid } = process.getuid() === 0 ? ids('postgres') : { uid: process.getuid(), gid: process.getgid() };
  await chown(join(at, 'key.pem'), uid, gid);
  // An address that no other server listens on, and this machine does not take for itself.
  const settings = { listen_addresses: '127.0.0.77', ssl: 'on', ssl_cert_file: join(at, 'cert.pem'), ssl_key_file: join(at, 'key.pem') };
  const postgres = await Postgres.start(t, Object.entries(settings).flatMap(([key, value]) => ['-c', `${key}=${value}`]));
  postgres.query("create role far login password 'very-secret'; alter database app owner to far");
  await postgres.allow('local all all trust', 'hostssl all all all scram-sha-256');
  const start = async (url, password) => {
    await writeFile(join(at, 'password'), `${password}\n`);
    const cluster = { database: `"${url}"`, password_file: `"${join(at, 'password')}"`, timeout: '"2s"' };
    return Relay.start(t, postgres.config({ cluster }));
  };
  const refused = async (url, password, why) => {
    const error = await start(url, password).then(() => { throw new Error(`${url} is not refused`); }, error => error);
    assert.match(error.message, why);
    assert.ok(!error.message.includes('secret'), error.message);
  };
  const verified = `?sslmode=verify-full&sslrootcert=${join(at, 'ca.pem')}`;
  await refused('postgres://far@127.0.0.77/app' + verified, 'wrong-secret', /password authentication failed for user "far"/);
  await refused('postgres://far@127.0.0.77/app?sslmode=verify-full', 'very-secret', /does not know its authority; name .* with \?sslrootcert/);
  await refused('postgres://far@127.0.0.77/app?sslmode=disable', 'very-secret', /no encryption/);
  const relay = await start('postgres://far@127.0.0.77/app' + verified, 'very-secret');
  const client = relay.client(t);
  await share(client, { n: 1 });
  const encrypted = 'select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid) where usename = $$far$$';
  assert.equal(postgres.query(encrypted), 't');
  assert.ok(!relay.log.includes('very-secret') && !relay.command('--print-config').includes('very-secret'));
  await relay.kill();
  // The server now shows the authority's certificate.
  await copyFile(join(at, 'ca.pem'), join(at, 'cert.pem'));
  await copyFile(join(at, 'ca.key'), join(at, 'key.pem'));
  postgres.query('select pg_reload_conf()');
  await refused('postgres://far@127.0.0.77/app' + verified, 'very-secret', /it is its own authority/);
});

test('--check-config names what is wrong with the database, and no password', { skip }, async t => {
  const postgres = await Postgres.start(t);
  const at = await folder(t);
  const check = async (database, url) => {
    const file = await new Relay(at, postgres.config({ cluster: { database: `"${url}"`, timeout: '"1s"' } })).writeConfig();
    const { status, stderr, stdout } = spawnSync(BINARY, ['--check-config', '--config', file], { encoding: 'utf8' });
    assert.ok(!`${stdout}${stderr}`.includes('secret'), 'no password is shown');
    return { status, text: stderr + stdout };
  };
  assert.equal((await check('app', postgres.url())).status, 0);
  const missing = await check('none', postgres.url('none'));
  assert.match(missing.text, /cluster.database: cannot use none at .*: database "none" does not exist/);
  postgres.query('create role guest login');
  const guest = await check('app', postgres.url('app', 'guest'));
  assert.match(guest.text, /the role guest may not create the relay's tables/);
  postgres.query('create role few login connection limit 5; alter database app owner to few');
  assert.match((await check('app', postgres.url('app', 'few'))).text, /allows 5 connections \(the role few\), and the relay needs 8/);
  const unreachable = await check('app', 'postgres://me@127.0.0.1:9/app');
  assert.match(unreachable.text, /cannot use app at 127.0.0.1:9: error connecting to server: .*refused/);
  assert.match((await check('app', 'postgres://me:secret@127.0.0.1:9/app')).text, /me:\*\*\*@127.0.0.1:9\/app has a password in it/);
  postgres.query('alter database app set synchronous_commit = off');
  assert.match((await check('app', postgres.url())).text, /synchronous_commit is off/);
});
