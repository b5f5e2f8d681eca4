// The program as an operator uses it: failed starts, the config, reload, the log.
import assert from 'node:assert/strict';
import { execFile, spawnSync } from 'node:child_process';
import { chmod, chown, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { Program } from './program.mjs';
import { BINARY, Relay, atEnd, bundle, documentId, folder, share, until } from './relay.mjs';

/** Runs a command to its end without blocking this process, which the relay may need. */
function run(args, env = {}) {
  return new Promise(resolve => {
    execFile(BINARY, args, { env: { ...process.env, ...env }, timeout: 20_000 }, (error, stdout, stderr) =>
      resolve({ code: error ? error.code : 0, stdout, stderr }));
  });
}

async function configured(t, text) {
  const at = await folder(t);
  const file = join(at, 'tonk-relay.toml');
  const paths = `[storage]\npath = "${at}/documents"\n[bundles]\npath = "${at}/bundles"\n[admin]\nlisten = []\n`;
  await writeFile(file, typeof text === 'function' ? text(at) + paths : text + paths);
  return { at, file };
}

test('every fault of a config is reported with file, line and key, and the exit code is 78', async t => {
  const { file } = await configured(t, 'drain_timeout = "soon"\n[http]\nlisten = ["0.0.0.0:0"]\nlisen = 1\n[log]\nlevel = "x=loud"\n');
  const { code, stderr } = await run(['--config', file, '--check-config']);
  assert.equal(code, 78);
  assert.deepEqual(stderr.trim().split('\n'), [
    `${file}:1: drain_timeout: "soon" is not a duration between "1ms" and "365d"; expected one such as "20ms", "5s" or "10m"`,
    `${file}:4: http.lisen: unknown key; expected one of [http]: listen, public_url, trusted_proxies, proxy_protocol, allowed_origins, metrics, header_timeout, body_idle_timeout, body_min_rate, response_idle_timeout`,
  ]);
  await writeFile(file, (await readFile(file, 'utf8')).replace('"soon"', '"5s"').replace('lisen = 1\n', ''));
  const next = await run(['--config', file, '--check-config']);
  assert.equal(next.code, 78);
  assert.deepEqual(next.stderr.trim().split('\n').map(line => line.split(': ').slice(0, 2).join(': ')), [
    `${file}: auth.mode`, `${file}:5: log.level`,
  ]);
  const start = await run(['--config', file]);
  assert.deepEqual([start.code, start.stderr], [78, next.stderr], 'a start reports the same');
});

const CONFIG_FAULTS = [
  ['[http', /^\S+:1: is not valid TOML: /],
  ['[log]\nlevel = info\n', /:2: log\.level: info is not a value; strings need quotes: level = "info"/],
  ['[tls]\ncert = "/a"\ncert = "/b"\n', /:3: tls\.cert: is set twice, first on line 2/],
  ['[nope]\nx = 1\n', /:2: nope\.x: unknown section \[nope\]; expected one of \[http\], \[tls\], \[admin\], \[bundle\]/],
  ['[sync]\nmax_message = "0B"\n', /:2: sync\.max_message: "0B" is not a size above zero/],
  ['[sync]\nforward_requests = "sometimes"\n', /:2: sync\.forward_requests: "sometimes" is unknown; expected one of "open", "always", "never"/],
  ['[auth]\nmode = "password"\n', /:2: auth\.mode: "password" is unknown; expected one of "", "open", "token", "jwt"/],
  ['[http]\nlisten = ["localhost"]\n', /:2: http\.listen: "localhost" is not an IP address with a port; expected one such as "127\.0\.0\.1:8081"/],
  ['[http]\npublic_url = "example.org"\n', /:2: http\.public_url: "example\.org" is not the URL of a relay/],
  ['[http]\nallowed_origins = ["example.org"]\n', /:2: http\.allowed_origins: "example\.org" is not an origin; expected "\*", or .*"https:\/\/app\.example\.org"/],
  ['[limits]\nconnections = -1\n', /:2: limits\.connections: -1 is negative; expected an integer of 0 or more, such as 15000/],
  ['[bundle]\npath = "app.tonk"\n', /:2: bundle\.path: "app\.tonk" is a relative path; expected an absolute one, such as "\/srv\/app\.tonk"/],
  ['[bundle]\npath = "/no/such.tonk"\n', /:2: bundle\.path: \/no\/such\.tonk: not found/],
  ['[bundle]\nwasm = "/no/such.wasm"\n', /:2: bundle\.wasm: \/no\/such\.wasm: not found/],
  ['[tls]\ncert = "/no/such.pem"\n', /: tls\.key: is not set, and tls\.cert is; expected the key of that certificate, such as "\S+"/],
  ['[auth]\nmode = "jwt"\n', /: auth\.jwt_keys: is not set, and auth\.mode = "jwt" needs it; expected a file of public keys/],
  ['[sync]\nmemory = "70"\n', /:2: sync\.memory: "70" is not a share of memory; expected "1%" to "100%", or a size with a unit/],
];
for (const [text, expected] of CONFIG_FAULTS) {
  test(`config fault: ${text.replaceAll('\n', ' ')}`, async t => {
    const { file } = await configured(t, text);
    const { code, stderr } = await run(['--config', file, '--check-config']);
    assert.equal(code, 78);
    assert.match(stderr, expected);
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
  });
}

test('what has no effect, or never matches, is a warning of the check and of the start', async t => {
  const { file } = await configured(t, '[http]\nlisten = ["127.0.0.1:0"]\nallowed_origins = ["https://App.example.org:443"]\n[auth]\ntokens = "/etc/tokens"\n');
  const check = await run(['--config', file, '--check-config']);
  assert.equal(check.code, 0);
  const [effect, origin] = check.stderr.trim().split('\n');
  assert.equal(effect, `warning: ${file}:5: auth.tokens: has no effect: auth.mode is not "token"`);
  assert.match(origin, /^warning: \S+:3: http\.allowed_origins: "https:\/\/App\.example\.org:443" never matches: .*write "https:\/\/app\.example\.org"$/);
  const program = new Program(BINARY, ['--config', file], { stdio: ['ignore', 'ignore', 'pipe'] });
  atEnd(t, () => program.kill());
  await until('ready', () => program.output.includes(' ready '));
  const log = program.output;
  assert.match(log, /WARN .*config: \S+:5: auth\.tokens: has no effect/);
  assert.match(log, /WARN .*config: \S+:3: http\.allowed_origins: .* never matches/);
});

test('a mistyped command suggests the right one', async () => {
  for (const [words, suggested] of [[['statsu'], 'status'], [['doc', 'blokced'], 'blocked'], [['token', 'lsit'], 'list']]) {
    const { code, stderr } = await run(words);
    assert.equal(code, 2, stderr);
    assert.match(stderr, new RegExp(`unrecognized subcommand '${words.at(-1)}'[^]*similar subcommand exists: '${suggested}'`));
  }
});

test('NO_COLOR switches the colours of the log off', async t => {
  const { file } = await configured(t, '[log]\nlevel = "info"\n[http]\nlisten = ["127.0.0.1:0"]\n');
  const onTerminal = async env => {
    // `script` runs this by $SHELL or sh; without `exec`, sh would stay between it and the relay.
    const program = new Program('script', ['--quiet', '--command', `exec '${BINARY}' --config '${file}'`, '/dev/null'],
      { env: { ...process.env, ...env }, stdio: ['pipe', 'pipe', 'inherit'] });
    atEnd(t, () => program.kill());
    await until('ready', () => program.output.includes('ready'));
    const { pid } = program.child;
    const [relay] = (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).split(' ');
    process.kill(Number(relay), 'SIGTERM');
    await program.exited;
    return program.output;
  };
  assert.match(await onTerminal({ NO_COLOR: '' }), /\x1b\[/);
  assert.doesNotMatch(await onTerminal({ NO_COLOR: '1' }), /\x1b\[/);
});

test('a valid config is printed with the source of each key', async t => {
  const { file } = await configured(t, '[http]\nlisten = ["127.0.0.1:0"]\n');
  const check = await run(['--config', file, '--check-config']);
  assert.deepEqual([check.code, check.stdout], [0, `${file}: no fault\n`]);
  const { stdout } = await run(['--config', file, '--print-config']);
  assert.match(stdout, new RegExp(`listen = \\["127\\.0\\.0\\.1:0"\\] +# ${file}:2\n`));
  assert.match(stdout, /drain_timeout = "30s" +# default\n/);
  const missing = await run(['--config', '/no/such.toml']);
  assert.deepEqual([missing.code, missing.stderr],
    [78, '/no/such.toml: not found; name the file with --config, or install the package\'s own\n']);
});

test('the folder of the admin socket is created, and one that cannot be is named', async t => {
  const at = await folder(t);
  const relay = await Relay.start(t, { admin: { listen: `["unix:${at}/run/tonk-relay/admin.sock"]` } }, at);
  assert.match(relay.command('status'), /^ready +yes$/m);
  await relay.stop();
  const file = join(at, 'tonk-relay.toml');
  const text = await readFile(file, 'utf8');
  await writeFile(file, text.replace('/run/tonk-relay/', '/tonk-relay.toml/run/'));
  const { code, stderr } = await run(['--config', file]);
  assert.equal(code, 1);
  assert.match(stderr, /admin\.listen: .*the folder \S+\/tonk-relay\.toml\/run is not there, and cannot be created/);
  const check = await run(['--config', file, '--check-config']);
  assert.deepEqual([check.code, /admin\.listen: \S+\/tonk-relay\.toml\/run: /.test(check.stderr)], [78, true], check.stderr);
});

test('starts that fail report why, and leave no incomplete files', async t => {
  const taken = net.createServer().listen(0, '127.0.0.1');
  await new Promise(resolve => taken.on('listening', resolve));
  atEnd(t, () => taken.close());
  const { port } = taken.address();
  const listen = '[http]\nlisten = ["127.0.0.1:0"]\n';
  const at = await folder(t);
  await writeFile(join(at, 'text.tonk'), 'no ZIP');
  await writeFile(join(at, 'file'), '');
  await mkdir(join(at, 'folder'));
  const serve = name => `${listen}[bundle]\npath = "${join(at, name)}"\n`;
  for (const [text, expected] of [
    [`[http]\nlisten = ["127.0.0.1:${port}"]\n`, new RegExp(`http\\.listen: cannot listen on 127\\.0\\.0\\.1:${port}: Address already in use`)],
    [serve('missing.tonk'), /bundle\.path: \S+missing\.tonk: not found/],
    [serve('text.tonk'), /bundle\.path: \S+text\.tonk: not a ZIP archive/],
    [serve('folder'), /bundle\.path: \S+folder: cannot be read: is not a regular file/],
  ]) {
    const { file } = await configured(t, text);
    const { code, stderr } = await run(['--config', file]);
    assert.equal(code, 1, stderr);
    assert.match(stderr.trim().split('\n').at(-1), expected);
    assert.match(stderr, new RegExp(file));
  }
  const { file, at: root } = await configured(t, listen);
  await writeFile(join(root, 'documents'), 'a file where the folder must be');
  const { code, stderr } = await run(['--config', file]);
  assert.equal(code, 1);
  assert.match(stderr, /storage\.path: cannot create \S+documents\/\.tmp/);
});

test('the command line of the TypeScript relay works', async t => {
  const at = await folder(t);
  await writeFile(join(at, 'app.tonk'), bundle({ [documentId(1)]: { n: 1 } }));
  const missing = await run(['0', join(at, 'missing.tonk')]);
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /missing\.tonk: not found/);
  const s3 = await run(['0', join(at, 'app.tonk'), join(at, 'data'), '--print-config'], { S3_BUCKET_NAME: 'x', AWS_REGION: 'eu-west-1' });
  assert.match(s3.stdout, /store = "s3"/);
  assert.match(s3.stdout, /bucket = "x"/);
  assert.match(s3.stdout, /region = "eu-west-1"/);
  const relay = new Relay(at);
  relay.start = undefined;
  const program = new Program(BINARY, ['0', join(at, 'app.tonk'), join(at, 'data')],
    { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, HOST: '127.0.0.1', S3_BUCKET_NAME: '' } });
  atEnd(t, () => program.kill());
  await until('ready', () => program.output.includes(' ready '));
  const log = program.output;
  assert.match(log, /WARN .*the relay is open: everybody/);
  const port = /listening on http:\/\/\S*:(\d+)/.exec(log)[1];
  assert.equal((await fetch(`http://127.0.0.1:${port}/.manifest.tonk`)).status, 200);
});

test('a reload applies all keys or none, and names those that need a restart', async t => {
  const relay = await Relay.start(t);
  const file = join(relay.at, 'tonk-relay.toml');
  const before = await readFile(file, 'utf8');
  const reload = () => run(['reload', '--config', file]);
  assert.deepEqual(await reload(), { code: 0, stdout: 'reloaded: no setting has changed; the files of tokens and keys were read again\n', stderr: '' });

  await writeFile(file, `${before}[limits]\nconnections = 0\n`);
  const fault = await reload();
  assert.equal(fault.code, 1);
  assert.match(fault.stderr, /^not reloaded:\n\S+: limits\.connections: is 0; expected at least 1\n$/);
  assert.equal(await (await fetch(`${relay.url}/readyz`)).text(), 'degraded: reload\n');

  await writeFile(file, `${before}[limits]\nconnections = 7\n[sync]\npeer_id = "other"\n`);
  const restart = await reload();
  assert.equal(restart.code, 1);
  assert.match(restart.stderr, /^not reloaded:\n\S+:\d+: sync\.peer_id: needs a restart to change\n$/);
  assert.equal(await relay.metric('tonk_relay_limit{key="limits.connections"}'), 15000, 'nothing of it is in effect');

  await writeFile(file, `${before}[limits]\nconnections = 7\n[log]\nlevel = "debug"\n`);
  assert.deepEqual(await reload(), { code: 0, stdout: 'reloaded: limits.connections log.level\n', stderr: '' });
  assert.equal(await relay.metric('tonk_relay_limit{key="limits.connections"}'), 7);
  assert.equal(await (await fetch(`${relay.url}/readyz`)).text(), 'ok\n');
  await share(relay.client(t), { n: 1 });
  assert.match(relay.log, /DEBUG tonk_relay::sync::room/, 'the new level is in effect');

  await writeFile(file, `${before}[limits]\nconnections = 8\n`);
  relay.child.kill('SIGHUP');
  await until('SIGHUP', async () => await relay.metric('tonk_relay_limit{key="limits.connections"}') === 8);
  assert.equal(await relay.metric('tonk_relay_config_reloads_total{result="applied"}'), 3);
  assert.equal(await relay.metric('tonk_relay_config_reloads_total{result="refused"}'), 2);
});

test('an invalid log level is refused, and recent warnings are listed at every level', async t => {
  const relay = await Relay.start(t);
  const file = join(relay.at, 'tonk-relay.toml');
  const before = await readFile(file, 'utf8');
  const log = level => writeFile(file, `${before}[log]\nlevel = "${level}"\n`);
  for (const level of ['inof', 'debug info', '']) {
    await log(level);
    const { code, stderr } = await run(['--config', file, '--check-config']);
    assert.equal(code, 78);
    assert.match(stderr, new RegExp(`log\\.level: "${level}" is not a level; expected off, error, warn, info, debug or trace, such as "info"`));
    assert.equal((await run(['reload', '--config', file])).code, 1);
  }
  await log('off');
  assert.equal((await run(['reload', '--config', file])).code, 0);
  const end = relay.log.length;
  await writeFile(file, before);
  const last = async () => JSON.parse((await run(['status', '--json', '--config', file])).stdout).log;
  await until('the warning', async () => (await last()).some(({ level, text }) => level === 'WARN' && /has changed and is not in effect/.test(text)));
  assert.equal(relay.log.slice(end), '', 'and the log is silent');
});

test('a changed config file is reported, and applied only if configured', async t => {
  const relay = await Relay.start(t);
  const file = join(relay.at, 'tonk-relay.toml');
  const before = await readFile(file, 'utf8');
  await writeFile(file, `${before}[limits]\nconnections = 7\n`);
  await until('the report', () => relay.log.includes('the config file has changed and is not in effect'));
  assert.equal(await relay.metric('tonk_relay_limit{key="limits.connections"}'), 15000);
  await relay.stop();
  relay.config = { reload: { watch_config: 'true' } };
  await relay.start();
  const watching = await readFile(file, 'utf8');
  await writeFile(file, `${watching}[limits]\nconnections = 9\n`);
  await until('it is applied', async () => await relay.metric('tonk_relay_limit{key="limits.connections"}') === 9);
});

test('status reports the state of the relay', async t => {
  const relay = await Relay.start(t);
  const handle = await share(relay.client(t), { n: 1 });
  assert.ok(handle);
  const file = join(relay.at, 'tonk-relay.toml');
  const { stdout } = await run(['status', '--config', file]);
  assert.match(stdout, /^tonk-relay \d+\.\d+\.\d+ \(pid \d+\), running for \d+s\nready        yes\nconnections  1 \(1 peer\)\ndocuments    1 live, 0 requested\n/);
  const json = JSON.parse((await run(['status', '--json', '--socket', join(relay.at, 'admin.sock')])).stdout);
  assert.deepEqual([json.pid, json.connections, json.ready], [relay.child.pid, 1, true]);
  assert.match(stdout, /\ndisk         \S+ \S+ free \(storage\.min_free: 1 B\)\nmemory       \S+ MiB \(sync\.memory: \S+ GiB\)\n/);
  assert.match(stdout, /\nsign-in      none: clients on this machine only \(auth\.mode is not set\)\ncertificate  none: plain HTTP\n/);
  assert.match(stdout, /\nlast backup  never: .*\nquarantine   empty\n$/);
  assert.deepEqual([json.sign_in, json.certificate_until, json.backed_up_at], ['', null, null]);
  spawnSync(BINARY, ['backup', join(relay.at, 'backup'), '--config', file]);
  assert.match((await run(['status', '--config', file])).stdout, /\nlast backup  20\d\d-\S+Z \(less than an hour ago\)\n/);

  await rm(join(relay.at, 'admin.sock'));
  const deleted = await run(['status', '--config', file]);
  assert.equal(deleted.code, 1);
  assert.match(deleted.stderr, /admin\.sock: a relay is running, but its socket was deleted/);
  assert.match((await run(['doc', handle.documentId, '--config', file])).stderr, /its socket was deleted/);
  await relay.stop();
  const gone = await run(['status', '--config', file]);
  assert.equal(gone.code, 1);
  assert.match(gone.stderr, /admin\.sock: no relay is listening there/);
});

test('the relay listens on several IPv4 and IPv6 addresses', async t => {
  const relay = await Relay.start(t, { http: { listen: '["127.0.0.1:0", "[::1]:0"]' } });
  const ports = [...relay.log.matchAll(/listening on http:\/\/(\S+):(\d+)/g)];
  assert.deepEqual(ports.map(match => match[1]), ['127.0.0.1', '[::1]']);
  for (const [, host, port] of ports) {
    assert.equal((await fetch(`http://${host}:${port}/livez`)).status, 200);
  }
});

test('a repeated log line for one client is written once, with a count', async t => {
  const relay = await Relay.start(t, { log: { repeat: '"500ms"' }, sync: { handshake_timeout: '"10ms"' } });
  const { default: WebSocket } = await import('ws');
  for (let n = 0; n < 10; n++) {
    const socket = new WebSocket(relay.ws);
    await new Promise(resolve => { socket.on('close', resolve); socket.on('error', resolve); });
  }
  const lines = () => relay.log.split('\n').filter(line => line.includes('handshake_timeout') || line.includes('no join message'));
  await until('the count', () => lines().some(line => /times=\d/.test(line) && line.includes('repeated')));
  assert.ok(lines().length <= 4, relay.log);
});

test('two simultaneous signals count as one, and a later one ends the drain', async t => {
  const relay = await Relay.start(t, { drain_timeout: '"30s"' });
  relay.child.kill('SIGTERM');
  relay.child.kill('SIGINT');
  assert.equal((await relay.exited).code, 0, relay.log);
  assert.match(relay.log, /all documents are durable/);

  await relay.start();
  const stuck = net.connect(relay.port, '127.0.0.1');
  atEnd(t, () => stuck.destroy());
  stuck.write('POST /api/bundles HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nContent-Length: 5000\r\n\r\nhalf');
  await until('it is open', async () => await relay.metric('tonk_relay_http_connections{listener="public"}') >= 1);
  relay.child.kill('SIGTERM');
  await until('the drain', () => relay.log.includes('draining'));
  relay.child.kill('SIGTERM');
  await new Promise(resolve => setTimeout(resolve, 1100));
  assert.equal(relay.ended, undefined, 'the second signal came too soon to count');
  relay.child.kill('SIGTERM');
  assert.equal((await relay.exited).code, 1);
  assert.match(relay.log, /stopped at once by a second signal; all documents are durable, and HTTP requests have not ended/);
});

test('an admin socket never replaces a file', async t => {
  const at = await folder(t);
  await writeFile(join(at, 'app.tonk'), 'precious');
  const file = join(at, 'tonk-relay.toml');
  await writeFile(file, `[http]\nlisten = ["127.0.0.1:0"]\n[admin]\nlisten = ["unix:${at}/app.tonk"]\n`
    + `[storage]\npath = "${at}/documents"\n[bundles]\npath = "${at}/bundles"\n`);
  const { code, stderr } = await run(['--config', file]);
  assert.equal(code, 1);
  assert.match(stderr, /admin\.listen: cannot listen on unix:\S+app\.tonk: exists and is not a socket/);
  assert.equal(await readFile(join(at, 'app.tonk'), 'utf8'), 'precious');
});

test('root checks a config as the user and in the sandbox of the unit', async t => {
  if (process.getuid() !== 0) return t.skip('needs root: another user checks as itself');
  const { at, file } = await configured(t, at => `[http]\nlisten = ["127.0.0.1:0"]\n[bundle]\npath = "${at}/app.tonk"\n`);
  await writeFile(join(at, 'app.tonk'), bundle({ [documentId(1)]: { n: 1 } }), { mode: 0o644 });
  await chmod(at, 0o755);
  for (const name of ['documents', 'bundles']) {
    await mkdir(join(at, name));
    await chown(join(at, name), 65534, 65534);
  }
  const check = async settings => {
    const shown = { LoadState: 'loaded', User: 'nobody', ProtectHome: 'yes', ProtectSystem: 'strict', PrivateTmp: 'no', ...settings };
    const text = Object.entries(shown).map(([key, value]) => `${key}=${value}`).join('\n');
    await writeFile(join(at, 'systemctl'), `#!/bin/sh\ncat <<'END'\n${text}\nEND\n`, { mode: 0o755 });
    const env = { ...process.env, PATH: `${at}:${process.env.PATH}` };
    const { status, stdout, stderr } = spawnSync(BINARY, ['--check-config', '--config', file], { encoding: 'utf8', env });
    return { status, said: stdout + stderr };
  };
  const lines = ({ said }) => said.trim().split('\n').map(line => line.replaceAll(at, ''));
  const sandboxed = await check({});
  assert.equal(sandboxed.status, 78);
  assert.deepEqual(lines(sandboxed).map(line => /: (\S+): (\S+): tonk-relay\.service makes it read-only for the user nobody \(ProtectSystem=strict\)/.exec(line)?.slice(1)),
    [['bundles.path', '/bundles'], ['storage.path', '/documents']]);
  assert.match(lines(sandboxed)[1], /`systemctl edit tonk-relay`, and add the lines \[Service\] and ReadWritePaths=\/documents$/);
  const hidden = await check({ PrivateTmp: 'yes', ReadWritePaths: at });
  assert.match(lines(hidden)[0], /bundle\.path: \/app\.tonk: tonk-relay\.service hides it from the user nobody \(PrivateTmp=yes\); move it/);
  const allowed = { ReadWritePaths: at };
  assert.deepEqual(await check(allowed), { status: 0, said: `${file}: no fault (checked as the user nobody of tonk-relay.service)\n` });
  await chmod(join(at, 'app.tonk'), 0o600);
  await chown(join(at, 'documents'), 0, 0);
  await chmod(file, 0o600);
  const denied = await check(allowed);
  assert.equal(denied.status, 78);
  assert.deepEqual(lines(denied).map(line => /^\S+?: (?:(\S+): )?.*ermission denied.*\(checked as the user nobody of tonk-relay\.service\)$/.exec(line)?.[1] ?? 'config'),
    ['bundle.path', 'storage.path', 'config']);
  assert.match((await check({ User: 'nobody-else' })).said, /tonk-relay\.service: runs as the user nobody-else, which does not exist/);
});

test('a key that has no effect is reported, and is not a fault', async t => {
  const { file } = await configured(t, '[http]\nlisten = ["127.0.0.1:0"]\n[auth]\nmode = "open"\ntokens = "/etc/tokens"\n');
  await writeFile(file, (await readFile(file, 'utf8')).replace('[bundles]\n', '[bundles]\nbucket = "mine"\n'));
  const { code, stderr } = await run(['--config', file, '--check-config']);
  assert.equal(code, 0);
  assert.match(stderr, /^warning: \S+:\d+: bundles\.bucket: has no effect: bundles\.store is not "s3"\nwarning: \S+:\d+: auth\.tokens: has no effect: auth\.mode is not "token"\n$/);
});

test('a FIFO or a folder instead of a bundle does not block the start', async t => {
  const at = await folder(t);
  spawnSync('mkfifo', [join(at, 'fifo.tonk')]);
  const { file } = await configured(t, `[http]\nlisten = ["127.0.0.1:0"]\n[bundle]\npath = "${at}/fifo.tonk"\n`);
  const { code, stderr } = await run(['--config', file]);
  assert.equal(code, 1);
  assert.match(stderr, /is not a regular file/);
});
