// `tonk-relay cluster`: makes the database of a relay, and shows it.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { chmod, chown, copyFile, readFile, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import test from 'node:test';
import { Postgres, skip } from './postgres.mjs';
import { BINARY, Relay, folder, ids, saved, share, until } from './relay.mjs';

const isRoot = process.getuid() === 0;

/** Runs `tonk-relay cluster`. Returns its exit code and everything that it prints. */
function cluster(file, ...words) {
  const { status, stdout, stderr } = spawnSync(BINARY, ['cluster', ...words, '--config', file], { encoding: 'utf8' });
  return { status, text: stdout + stderr };
}

/** The same at a terminal, where `answer` is typed. */
function clusterAsked(file, answer, ...words) {
  const command = [BINARY, 'cluster', ...words, '--config', file].join(' ');
  const { status, stdout } = spawnSync('script', ['-qec', command, '/dev/null'], { input: `${answer}\n`, encoding: 'utf8' });
  return { status, text: stdout };
}

test('init makes a database, which the relay uses by the name of its user', { skip: skip || (!isRoot && 'needs root') }, async t => {
  const postgres = await Postgres.start(t);
  await chmod(postgres.folder, 0o755);
  await postgres.allow('local all nobody peer', 'local all postgres trust', 'local all all reject');
  const at = await folder(t);
  const nobody = ids('nobody');
  await chown(at, nobody.uid, nobody.gid);
  const relay = new Relay(at, postgres.config({ cluster: { database: `"${postgres.url('docs', 'nobody')}"` } }));
  t.after(() => relay.end());
  relay.as = nobody;
  // It may not run a program below /root.
  relay.binary = join(at, 'tonk-relay');
  await copyFile(BINARY, relay.binary);
  const file = await relay.writeConfig();

  const none = cluster(file, 'status');
  assert.equal(none.status, 1);
  assert.match(none.text, /if the role or the database does not exist, `tonk-relay cluster init` creates it/);
  const unasked = cluster(file, 'init');
  assert.equal(unasked.status, 1);
  assert.match(unasked.text, /create database "docs" owner "nobody_owner" encoding 'UTF8'/);
  assert.match(unasked.text, /nothing was changed: standard input is not a terminal; --yes/);
  const refused = clusterAsked(file, 'n', 'init');
  assert.equal(refused.status, 1, refused.text);
  assert.match(refused.text, /Do this\? \[y\/N\] [^]*nothing was changed/);
  assert.equal(postgres.query("select count(*) from pg_database where datname = 'docs'"), '0');

  const made = clusterAsked(file, 'y', 'init');
  assert.equal(made.status, 0, made.text);
  assert.match(made.text, /done: create the relay's tables[^]*The relay can use the database docs/);
  for (const words of [['init'], ['migrate']]) {
    const again = cluster(file, ...words);
    assert.equal(again.status, 0, again.text);
    assert.match(again.text, /has all of it already; nothing was changed/);
  }

  await relay.start();
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  await saved(client, handle);
  const status = cluster(file, 'status', '--json');
  assert.equal(status.status, 0, status.text);
  const report = JSON.parse(status.text);
  assert.deepEqual(report.relays.map(({ name }) => name), [`tonk-relay-${hostname()}`]);
  assert.equal(report.format, 4);
  assert.match(relay.command('status'), /database +docs at .*: `tonk-relay cluster status` shows more/);
  await relay.kill();
  // Root's commands use the database as the relay does.
  assert.match(relay.command('doc', handle.documentId), /changes +1 by 1 actor/);
  // The relay that was killed is not told from one that runs, for a minute.
  const seen = () => JSON.parse(cluster(file, 'status', '--json').text).relays.length;
  await until('the command has left the database', () => seen() === 1);
  postgres.query("alter role nobody in database docs set synchronous_commit = off");
  const amiss = cluster(file, 'status');
  assert.equal(amiss.status, 1);
  assert.match(amiss.text, /amiss +the setting synchronous_commit is off/);
});

test('init signs in with a password, and no password is in the log of the server', { skip }, async t => {
  const logged = ['log_statement=all', 'log_min_duration_statement=0', 'listen_addresses=127.0.0.79'];
  const postgres = await Postgres.start(t, logged.flatMap(setting => ['-c', setting]));
  postgres.query("create role admin login createdb createrole password 'admin-secret'");
  await postgres.allow('local all postgres trust', 'host all all all scram-sha-256');
  const at = await folder(t);
  const [password, adminPassword] = [join(at, 'password'), join(at, 'admin-password')];
  await writeFile(password, 'relay-secret\n');
  await writeFile(adminPassword, 'admin-secret\n');
  const database = { database: '"postgres://relay@127.0.0.79/docs"', password_file: `"${password}"` };
  const relay = new Relay(at, postgres.config({ cluster: database }));
  t.after(() => relay.end());
  const file = await relay.writeConfig();
  assert.match(cluster(file, 'init', '--yes').text, /expected --admin postgres:\/\/postgres@127.0.0.79\/postgres/);
  const other = cluster(file, 'init', '--yes', '--admin', 'postgres://admin@127.0.0.1/postgres');
  assert.match(other.text, /--admin names another server/);
  const before = await readFile(join(postgres.folder, 'log'), 'utf8');
  const words = ['init', '--yes', '--admin', 'postgres://admin@127.0.0.79/postgres', '--admin-password-file', adminPassword];
  const made = cluster(file, ...words);
  assert.equal(made.status, 0, made.text);
  assert.match(made.text, /create role "relay" login password '\*\*\*'/);
  await relay.start();
  const log = (await readFile(join(postgres.folder, 'log'), 'utf8')).slice(before.length);
  assert.match(log, /create role "relay" login password 'SCRAM-SHA-256\$/);
  assert.ok(!`${log}${made.text}${relay.log}`.includes('secret'), 'no password is shown');
});
