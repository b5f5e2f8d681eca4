// The log in a real journald: fields, levels, and what a reload changes.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import { BINARY, Relay, atEnd, close, folder, share, until } from './relay.mjs';

const skip = process.getuid() !== 0 ? 'needs root'
  : existsSync('/lib/systemd/systemd-journald') ? false : 'needs systemd-journald; tests/run installs it';

test('under a service manager the log is written to the journal with fields', { skip }, async t => {
  const at = await folder(t);
  // A first start without journald writes the config and chooses a port.
  const relay = await Relay.start(t, {}, at);
  await relay.stop();
  const file = join(at, 'tonk-relay.toml');
  const config = (level, format = 'auto') => `[http]\nlisten = ["127.0.0.1:${relay.port}"]\n[admin]\nlisten = ["unix:${at}/admin.sock"]\n`
    + `[storage]\npath = "${relay.documents}"\n[bundles]\npath = "${at}/bundles"\n[log]\nlevel = "${level}"\nformat = "${format}"\n`;
  await writeFile(file, config('info'));
  const journal = join(at, 'journal');
  const script = new URL('journald.sh', import.meta.url).pathname;
  const service = spawn('unshare', ['--mount', script, journal, BINARY, '--config', file], { stdio: ['ignore', 'ignore', 'inherit'] });
  const exited = once(service, 'exit');
  atEnd(t, () => service.kill('SIGKILL'));
  await until('ready', () => fetch(`${relay.url}/readyz`).then(answer => answer.ok, () => false));

  const entries = () => execFileSync('journalctl', ['-D', journal, '-o', 'json', '--no-pager'], { maxBuffer: 1 << 26 })
    .toString().trim().split('\n').map(line => JSON.parse(line)).filter(entry => entry.TARGET?.startsWith('tonk_relay'));
  const client = relay.client(t);
  await share(client, { n: 1 });
  const peer = client.repo.networkSubsystem.peerId;
  await close(client);
  const ended = await until('the end of the session', () => entries().find(entry => /^disconnected: ./.test(entry.MESSAGE)));
  assert.equal(ended.TONK_PEER, peer);
  assert.match(ended.TONK_CONNECTION, /^c\d+$/);
  assert.match(ended.TONK_CLOSE_CODE, /^\d+$/);
  assert.equal(ended.TONK_CLIENT, '127.0.0.1');
  assert.ok(entries().some(entry => entry.MESSAGE === 'ready' && entry.TONK_VERSION));

  assert.ok(!entries().some(entry => entry.TONK_DOCUMENT), 'single documents are not logged at this level');
  await writeFile(file, config('tonk_relay=debug'));
  execFileSync(BINARY, ['reload', '--socket', join(at, 'admin.sock')]);
  const again = relay.client(t);
  const handle = await share(again, { n: 2 });
  await until('a line of the document', () => entries().some(entry => entry.TONK_DOCUMENT === handle.documentId));
  await close(again);
  execFileSync('kill', ['-TERM', String(entries().at(-1)._PID)]);
  const [code] = await exited;
  assert.equal(code, 0);
  assert.ok(entries().some(entry => entry.MESSAGE === 'all documents are durable'));
});
