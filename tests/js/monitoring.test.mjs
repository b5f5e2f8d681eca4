// The alerts, recording rules and dashboards in packaging/, on a real Prometheus that scrapes a relay
// under load.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { appendFile, mkdir, readFile, readdir, symlink, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { dashboards } from '../../packaging/grafana/generate.mjs';
import { fails } from './commands.mjs';
import { PACKAGING, Prometheus, RULES, config, filled, load, run, skip } from './prometheus.mjs';
import { Relay, folder, until } from './relay.mjs';

const SRC = fileURLToPath(new URL('../../src/', import.meta.url));
/** Where npm packages are kept; the dashboards are checked against these versions. */
const CACHE = join(process.env.CARGO_TARGET_DIR ?? join(homedir(), '.cache/tonk-relay/target'), '../grafana-schema');
const SCHEMA = ['@grafana/schema@12.4.11', 'typescript@5.9.3'];

const rules = await readFile(RULES, 'utf8');
const records = [...rules.matchAll(/- record: (\S+)/g)].map(([, name]) => name);
const alerts = [...rules.matchAll(/- alert: (\S+)/g)].map(([, name]) => name);
/** `{ title, expr }` of every panel, with the variables as Grafana fills them in. */
const panels = Object.entries(dashboards).flatMap(([name, { panels, annotations }]) => {
  const all = panels.flatMap(panel => panel.targets.map(({ expr }) => [panel.title, expr]));
  // An annotation shows events, so it may be empty; it must only be valid.
  const notes = annotations.list.map(({ name, target }) => [name, target.expr, true]);
  return [...all, ...notes].map(([title, expr, mayBeEmpty]) =>
    ({ title: `${name}: ${title}`, expr: filled(expr), mayBeEmpty }));
});

test('the rules are valid, and each alert fires only when it should', { skip }, () => {
  run('promtool', 'check', 'rules', RULES);
  run('promtool', 'check', 'config', join(PACKAGING, 'prometheus', 'prometheus.yml'));
  run('promtool', 'test', 'rules', join(PACKAGING, 'prometheus', 'tonk-relay.rules.test.yml'));
});

test('each alert is tested both ways, and has a runbook that ends with a command', async () => {
  const tests = await readFile(join(PACKAGING, 'prometheus', 'tonk-relay.rules.test.yml'), 'utf8');
  const book = await readFile(join(PACKAGING, 'doc', 'runbooks.md'), 'utf8');
  for (const alert of alerts) {
    assert.match(tests, new RegExp(`alertname: ${alert}\n +eval_time: \\S+\n +exp_alerts`), `${alert} fires in a test`);
    assert.match(tests, new RegExp(`\\{ alertname: ${alert}, eval_time`), `${alert} does not fire in a test`);
    assert.ok(rules.includes(`runbooks.md#${alert.toLowerCase()}\n`), `the runbook of ${alert}`);
    const entry = new RegExp(`^## ${alert}\n(.+?)(?=^## |(?![^]))`, 'ms').exec(book);
    assert.ok(entry, `runbooks.md has ${alert}`);
    assert.match(entry[1].trim(), /```sh\n(tonk-relay|journalctl)[^`]*```$/, `${alert} ends in a command`);
  }
  const entries = [...book.matchAll(/^## (\S+)$/gm)].map(([, name]) => name);
  assert.deepEqual(entries.sort(), [...alerts].sort(), 'runbooks.md has no other entries');
});

test('rules and dashboards use only metrics and label values of the relay', async () => {
  const files = (await readdir(SRC, { recursive: true })).filter(name => name.endsWith('.rs'));
  const source = (await Promise.all(files.map(name => readFile(join(SRC, name), 'utf8')))).join('\n');
  const known = new Set([...source.matchAll(/= "(tonk_relay_\w+)" \[/g)].map(([, name]) => name));
  const expressions = [rules.replaceAll(/^ *#.*$/gm, ''), ...panels.map(({ expr }) => expr)].join('\n');
  for (const [, name] of expressions.matchAll(/(?<![:\w])(tonk_relay_\w+)(?!\w*:)/g)) {
    assert.ok(known.has(name) || known.has(name.replace(/_(bucket|count|sum)$/, '')), `there is no metric ${name}`);
  }
  for (const [, name] of expressions.matchAll(/(instance:\w+:\w+)/g)) {
    assert.ok(records.includes(name), `there is no rule ${name}`);
  }
  for (const [, label, text] of expressions.matchAll(/\b(check|reason|verdict|key|state|direction)!?=~?"([^"]*)"/g)) {
    for (const value of text.split('|')) {
      assert.ok(source.includes(`"${value}"`), `the relay has no ${label}="${value}"`);
    }
  }
});

test('the dashboards are up to date with their script', async () => {
  for (const [name, dashboard] of Object.entries(dashboards)) {
    const written = await readFile(join(PACKAGING, 'grafana', `${name}.json`), 'utf8');
    assert.equal(written, `${JSON.stringify(dashboard, undefined, 2)}\n`, 'run node packaging/grafana/generate.mjs');
    for (const { title, description, targets } of dashboard.panels) {
      assert.ok(title && description && targets.length, title);
    }
  }
});

test('the dashboards conform to the types of Grafana', async t => {
  if (!existsSync(join(CACHE, 'node_modules/typescript')) || !existsSync(join(CACHE, 'node_modules/@grafana/schema'))) {
    await mkdir(CACHE, { recursive: true });
    const words = ['install', '--prefix', CACHE, '--no-save', '--no-audit', '--no-fund', '--ignore-scripts', ...SCHEMA];
    const { status, stderr, error } = spawnSync('npm', words, { encoding: 'utf8', timeout: 60_000 });
    const why = error?.message ?? stderr.trim().split('\n')[0];
    if (status !== 0) return t.skip(`npm cannot fetch ${SCHEMA.join(' and ')}: ${why}`);
  }
  const at = await folder(t);
  await symlink(join(CACHE, 'node_modules'), join(at, 'node_modules'));
  await writeFile(join(at, 'types.ts'), await readFile(new URL('dashboards/types.ts', import.meta.url)));
  for (const name of Object.keys(dashboards)) {
    const written = await readFile(join(PACKAGING, 'grafana', `${name}.json`), 'utf8');
    const checked = `import type { Checked } from './types.js';\nexport const it: Checked = ${written};\n`;
    await writeFile(join(at, `${name}.ts`), checked);
  }
  const options = ['--noEmit', '--strict', '--skipLibCheck', '--target', 'es2022', '--module', 'nodenext'];
  const tsc = join(CACHE, 'node_modules/typescript/bin/tsc');
  const names = Object.keys(dashboards).map(name => `${name}.ts`);
  const { status, stdout } = spawnSync(process.execPath, [tsc, ...options, ...names], { cwd: at, encoding: 'utf8' });
  assert.equal(status, 0, stdout);
});

test('on a relay under load every panel and rule has data, and no alert fires', { skip }, async t => {
  const at = await folder(t);
  const relay = await Relay.start(t, await config(at), at);
  const prometheus = await Prometheus.start(t, relay);
  // A late scrape on a busy machine is ignored.
  const alerts = async () => (await prometheus.query('ALERTS{alertname!="TonkRelayDown"}')).map(({ metric }) => metric);
  await until('the rules are evaluated', async () => (await prometheus.query(records.at(-1))).length === 1);
  assert.deepEqual(await alerts(), [], 'while it is idle');
  await load(t, relay);

  const text = await (await fetch(`${relay.url}/metrics`)).text();
  const checked = spawnSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' });
  assert.equal(checked.status, 0, `promtool check metrics: ${checked.stdout}${checked.stderr}`);

  const isFinite = async expr => (await prometheus.query(expr)).some(({ value }) => Number.isFinite(Number(value[1])));
  // All of them wait at the same time.
  const seconds = 40;
  const missing = [];
  const wanted = [...panels, ...records.map(name => ({ title: 'recording rule', expr: name }))];
  await Promise.all(wanted.map(({ title, expr, mayBeEmpty }) => mayBeEmpty
    ? prometheus.query(expr)
    : until(title, () => isFinite(expr), seconds).catch(error => missing.push(`${title}: ${expr}: ${error.message}`))));
  assert.deepEqual(missing, [], 'expressions without data');

  const { groups } = await prometheus.get('rules', {});
  const failing = groups.flatMap(({ rules }) => rules).filter(({ health }) => health !== 'ok');
  assert.deepEqual(failing.map(({ name, lastError }) => `${name}: ${lastError}`), []);
  assert.deepEqual(await alerts(), [], 'under load');

  // The metrics agree with what was done.
  const value = async expr => Number((await prometheus.query(expr))[0]?.value[1]);
  await until('the backup is known', async () => await value('time() - tonk_relay_backup_timestamp_seconds') < 90);
  assert.equal(await value('tonk_relay_bundle_uploads_total{result="stored"}'), 1);
  assert.ok(await value('rate(tonk_relay_changes_applied_total[10s])') > 10);

  // Real faults fire their alerts, after the time in `for`.
  const isOnItsWay = alert => until(`${alert} is pending`, async () =>
    (await prometheus.query(`ALERTS{alertname="${alert}"}`)).length === 1);
  await writeFile(join(at, 'app.tonk'), 'no bundle');
  await appendFile(join(at, 'tonk-relay.toml'), 'nonsense = 1\n');
  fails(relay, 'reload');
  await isOnItsWay('TonkRelayBundleRejected');
  await isOnItsWay('TonkRelayConfigRejected');
  await relay.kill();
  await isOnItsWay('TonkRelayDown');
});
