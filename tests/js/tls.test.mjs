// TLS on the public port: real clients, openssl, and renewed certificates.
import assert from 'node:assert/strict';
import { execFile, execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, rename, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { stoppedWhileConnecting } from './raw.mjs';
import { BINARY, Relay, folder, saved, share, until } from './relay.mjs';

const skip = spawnSync('openssl', ['version']).status === 0 ? false : 'needs openssl';
// automerge-repo's adapter cannot be given a CA. `ping` and curl show that certificates are
// verified.
process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0';
process.removeAllListeners('warning');

/** Makes a certificate for localhost, signed by a CA of this folder. */
function certify(at, name, serial) {
  const openssl = (...words) => execFileSync('openssl', words, { cwd: at, stdio: 'pipe' });
  const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'];
  if (serial === 1) openssl('req', '-x509', ...curve, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=test', '-days', '2');
  openssl('req', ...curve, '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', '/CN=localhost');
  execFileSync('bash', ['-c', `openssl x509 -req -in ${name}.csr -CA ca.pem -CAkey ca.key -set_serial ${serial} -days 2 \
    -extfile <(echo subjectAltName=DNS:localhost,IP:127.0.0.1) -out ${name}.pem`], { cwd: at, stdio: 'pipe' });
}

async function start(t) {
  const at = await folder(t);
  certify(at, 'one', 1);
  certify(at, 'two', 2);
  const [cert, key] = [join(at, 'cert.pem'), join(at, 'key.pem')];
  await copyFile(join(at, 'one.pem'), cert);
  await copyFile(join(at, 'one.key'), key);
  const relay = await Relay.start(t, { tls: { cert: `"${cert}"`, key: `"${key}"` }, http: { header_timeout: '"1s"' } }, at);
  relay.put = async (from, to) => {
    await copyFile(join(at, from), join(at, 'new'));
    await rename(join(at, 'new'), join(at, to));
  };
  relay.tls = `https://127.0.0.1:${relay.port}`;
  relay.wss = `wss://127.0.0.1:${relay.port}`;
  return relay;
}

const handshake = (relay, ...words) => spawnSync('openssl',
  ['s_client', '-connect', `127.0.0.1:${relay.port}`, '-CAfile', join(relay.at, 'ca.pem'), ...words],
  { input: '', encoding: 'utf8', timeout: 10_000 });
const serial = relay => {
  const { stdout } = handshake(relay);
  const pem = /-----BEGIN CERTIFICATE-----[^]*?-----END CERTIFICATE-----/.exec(stdout)?.[0];
  return pem && execFileSync('openssl', ['x509', '-noout', '-serial'], { input: pem, encoding: 'utf8' }).trim();
};
const degraded = relay => relay.command('status').split('\n').filter(line => line.startsWith('degraded')).join('\n');

test('clients, curl, ping and `client` connect with TLS 1.2 and 1.3, and nothing older', { skip }, async t => {
  const relay = await start(t);
  const [writer, reader] = [1, 2].map(() => relay.client(t, { url: relay.wss }));
  const handle = await share(writer, { n: 1 });
  const copy = await reader.repo.find(handle.url);
  handle.change(doc => { doc.n = 2; });
  await until('the change is here', () => copy.doc().n === 2);
  assert.match(handshake(relay, '-tls1_2').stdout, /Verify return code: 0 \(ok\)/);
  assert.match(handshake(relay, '-tls1_3').stdout, /Verify return code: 0 \(ok\)/);
  for (const old of ['-tls1', '-tls1_1']) assert.notEqual(handshake(relay, old, '-cipher', 'ALL:@SECLEVEL=0').status, 0, old);
  assert.match(handshake(relay, '-alpn', 'h2,http/1.1').stdout, /ALPN protocol: http\/1.1/);
  const run = promisify(execFile);
  const said = (await run(BINARY, ['ping', relay.wss, '--ca-file', join(relay.at, 'ca.pem'), '--silence', '1s'])).stdout;
  assert.match(said, /^tls +TLSv? ?1\.3, certificate until .* \(1 day\)$/m, said);
  const opening = run(BINARY, ['client', 'open', handle.documentId, '--url', relay.wss, '--ca-file', join(relay.at, 'ca.pem')]);
  opening.child.stdin.end();
  assert.equal((await opening).stdout, '{"n":2}\n');
  await assert.rejects(run(BINARY, ['ping', relay.wss]), error => /^tls: the certificate is self-signed, or .*--ca-file.*--insecure/m.test(error.stderr));
  const page = execFileSync('curl', ['-s', '--cacert', join(relay.at, 'ca.pem'), `${relay.tls}/livez`], { encoding: 'utf8' });
  assert.equal(page, 'ok\n');
  assert.ok(spawnSync('curl', ['-s', `http://127.0.0.1:${relay.port}/livez`]).status !== 0, 'no plain HTTP');
});

test('`ping` accepts a self-signed certificate that is named, or any with --insecure', { skip }, async t => {
  const at = await folder(t);
  // As `openssl req -x509` makes it, it is its own authority.
  execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'key.pem', '-out',
    'cert.pem', '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1', '-days', '40'], { cwd: at, stdio: 'pipe' });
  const cert = join(at, 'cert.pem');
  const relay = await Relay.start(t, { tls: { cert: `"${cert}"`, key: `"${join(at, 'key.pem')}"` } }, at);
  const ping = (host, ...words) => promisify(execFile)(BINARY, ['ping', `wss://${host}:${relay.port}`, '--silence', '0s', '--largest', '1KiB', ...words]);
  await assert.rejects(ping('127.0.0.1'), error => /^tls: the certificate is self-signed/m.test(error.stderr));
  assert.match((await ping('127.0.0.1', '--ca-file', cert)).stdout, /^tls +TLSv? ?1\.3, certificate until \S+ \(39 days\)$/m);
  await assert.rejects(ping('localhost', '--ca-file', cert), error => /^tls: the certificate is for another host name/m.test(error.stderr));
  assert.match((await ping('localhost', '--insecure')).stdout, /^tls +TLSv? ?1\.3, certificate until .*; NOT VERIFIED \(--insecure\)$/m);
  assert.match(relay.command('status'), /\ncertificate  expires \S+Z \(in 39 days\)\n/);
});

test('a renewed certificate is used for new connections, and open ones are kept', { skip }, async t => {
  const relay = await start(t);
  const client = relay.client(t, { url: relay.wss });
  const handle = await share(client, { n: 1 });
  const { socket } = client.adapter;
  assert.equal(serial(relay), 'serial=01');
  // The new certificate does not match the old key.
  await relay.put('two.pem', 'cert.pem');
  await until('it is reported', () => /degraded +tls: .*do not match/.test(degraded(relay)));
  assert.equal(serial(relay), 'serial=01');
  await relay.put('two.key', 'key.pem');
  await until('the new one', () => serial(relay) === 'serial=02');
  await until('all is well', () => degraded(relay) === '');
  handle.change(doc => { doc.n = 2; });
  await saved(client, handle);
  assert.equal(client.adapter.socket, socket, 'it is the same connection');
  await writeFile(join(relay.at, 'cert.pem'), 'garbage');
  await until('it is reported', () => /degraded +tls: .*the file contains no certificate \(PEM\)/.test(degraded(relay)));
  assert.match(relay.log, /cannot use the changed certificate; still using the previous one/);
  assert.equal(serial(relay), 'serial=02');
});

test('a client that is silent in the TLS handshake is disconnected, and others are served meanwhile', { skip }, async t => {
  const relay = await start(t);
  const silent = Array.from({ length: 50 }, () => connect(relay.port, '127.0.0.1'));
  for (const socket of silent) socket.on('error', () => {});
  const cut = Promise.all(silent.map(socket => once(socket.resume(), 'close')));
  const client = relay.client(t, { url: relay.wss });
  await share(client, { n: 1 });
  await cut;
  const text = execFileSync('curl', ['-sk', `${relay.tls}/metrics`], { encoding: 'utf8' });
  assert.match(text, /tonk_relay_tls_handshakes_total\{result="late"\} 50/);
});

test('an invalid certificate prevents a start and a reload', { skip }, async t => {
  const relay = await start(t);
  const config = join(relay.at, 'tonk-relay.toml');
  await copyFile(join(relay.at, 'two.key'), join(relay.at, 'key.pem'));
  const check = spawnSync(BINARY, ['--check-config', '--config', config], { encoding: 'utf8' });
  assert.equal(check.status, 78);
  assert.match(check.stderr, /tls\.cert: .*cert\.pem and .*key\.pem do not match/);
  await relay.stop();
  const ended = spawnSync(BINARY, ['--config', config], { encoding: 'utf8', timeout: 10_000 });
  assert.equal(ended.status, 1);
  assert.match(ended.stderr, /tls\.cert: .*do not match/);
});

test('a start between the two steps of a renewal waits for the second', { skip }, async t => {
  const relay = await start(t);
  await relay.stop();
  await relay.put('two.pem', 'cert.pem');
  const starting = relay.start();
  starting.catch(() => {});
  await until('it waits', () => relay.log.includes('they may be changing'));
  await relay.put('two.key', 'key.pem');
  await starting;
  assert.equal(serial(relay), 'serial=02');
});

test('clients in the TLS handshake while the relay stops are told, and not reset', { skip }, async t => {
  const relay = await start(t);
  const ended = await stoppedWhileConnecting(t, relay, relay.wss, 8);
  assert.deepEqual(ended, Array(8).fill(1012));
});
