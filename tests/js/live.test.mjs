// Live inspection: the documents and sessions that cost most, what happens to one document, and
// `ping`.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createServer } from 'node:http';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { fails, find, isUnavailable, json } from './commands.mjs';
import { Program } from './program.mjs';
import { BINARY, Relay, atEnd, close, saved, share, until } from './relay.mjs';

/** Follows a document as an operator does; `events` are those printed so far. */
function follow(t, relay, id) {
  const words = ['doc', id, '--follow', '--json', '--config', join(relay.at, 'tonk-relay.toml')];
  const program = new Program(BINARY, words, { stdio: ['ignore', 'pipe', 'inherit'] });
  atEnd(t, () => program.kill());
  const events = () => program.output.split('\n').slice(0, -1).map(line => JSON.parse(line));
  return { exited: program.exited, events };
}

test('`doc ID` and `doc ID --follow` show who has what, and what happened to each change', async t => {
  const relay = await Relay.start(t);
  const [writer, reader] = [relay.client(t), relay.client(t)];
  const handle = await share(writer, { text: 'xyzzy-plugh' });
  const id = handle.documentId;
  await reader.repo.find(handle.url);
  const known = await until('all lines are printed', () => {
    const known = json(relay, 'doc', id);
    const all = known.live?.sessions.every(session => session.heads?.join() === known.live.heads.join());
    return known.live?.sessions.length === 2 && all && known;
  });
  assert.equal(known.live.state, 'live');
  assert.deepEqual(known.live.heads, known.live.saved);
  assert.deepEqual(known.heads, known.live.heads);
  assert.deepEqual(known.live.sessions.map(session => session.peer).sort(),
    [writer.repo.peerId, reader.repo.peerId].sort());
  assert.match(relay.command('doc', id), /all saved\n.*has all changes\n.*has all changes\n/);

  const following = follow(t, relay, handle.url);
  let n = 0;
  await until('an edit is reported', () => {
    // The command may not be connected yet.
    handle.change(doc => { doc.n = n += 1; });
    // It may have connected in the middle of an edit. The lines after the first message are of a
    // whole edit.
    const events = following.events().map(({ event }) => event);
    const whole = events.slice(events.indexOf('received'));
    return ['received', 'applied', 'sent', 'saved'].every(event => whole.includes(event));
  });
  const of = (peer, kind) => following.events().find(event => event.peer === peer && event.event === kind);
  assert.ok(of(writer.repo.peerId, 'received').brings_changes);
  assert.ok(of(writer.repo.peerId, 'applied').new_changes >= 1);
  assert.equal(of(reader.repo.peerId, 'sent').kind, 'sync');
  assert.ok(!JSON.stringify(following.events()).includes('xyzzy'), 'never content');
  await Promise.all([writer, reader].map(close));
  await relay.stop();
  await following.exited;
  const stopped = json(relay, 'doc', id);
  assert.equal(stopped.live, null);
  assert.match(fails(relay, 'doc', id, '--follow').stderr, /no relay is listening there/);
});

test('`top` lists the documents and sessions that cost most, up to a limit', async t => {
  const relay = await Relay.start(t);
  const busy = relay.client(t);
  for (let n = 0; n < 30; n += 1) await share(busy, { n });
  const handle = await share(busy, { n: 0 });
  for (let n = 1; n <= 200; n += 1) {
    handle.change(doc => { doc.n = n; });
    if (n % 20 === 0) await saved(busy, handle);
  }
  const top = json(relay, 'top');
  assert.equal(top.documents.length, 20);
  const [first, second] = top.documents;
  assert.equal(first.document, handle.documentId);
  assert.ok(first.cost.seconds > second.cost.seconds && first.cost.messages >= 20, JSON.stringify(first));
  assert.equal(first.changes, 201);
  assert.equal(first.sessions, 1);
  assert.equal(top.sessions[0].peer, busy.repo.peerId);
  assert.equal(top.sessions[0].documents, 31);
  assert.match(relay.command('top'), new RegExp(`${handle.documentId} .*\n`));
});

test('a blocked document is withheld at once, and returns with the changes made meanwhile', async t => {
  const relay = await Relay.start(t);
  const [writer, reader] = [relay.client(t), relay.client(t)];
  const handle = await share(writer, { n: 1 });
  const other = await share(writer, { other: 1 });
  const copy = await reader.repo.find(handle.url);
  await saved(writer, handle);
  const following = follow(t, relay, handle.documentId);
  assert.equal(json(relay, 'doc', 'block', handle.url, '--reason', 'too large').reason, 'too large');
  await isUnavailable(t, relay, handle.url);
  handle.change(doc => { doc.n = 2; });
  await until('it was dropped', async () =>
    await relay.metric('tonk_relay_messages_dropped_total{reason="blocked"}') > 0);
  await until('the follower is told why', () =>
    following.events().some(event => event.event === 'refused' && event.reason === 'blocked'));
  other.change(doc => { doc.other = 2; });
  await saved(writer, other);
  assert.equal(copy.doc().n, 1);
  assert.match(relay.command('doc', handle.url), /blocked {6}since .*: too large/);
  assert.match(relay.command('status'), /blocked +1 document:/);
  assert.deepEqual(json(relay, 'doc', 'blocked').map(({ document, reason }) => [document, reason]),
    [[handle.documentId, 'too large']]);
  assert.equal(json(relay, 'doc', 'block', handle.url).reason, 'too large', 'blocked again, the first reason stays');
  assert.match(relay.log, /an operator blocked a document/);

  // Also over a restart.
  await relay.restart();
  await isUnavailable(t, relay, handle.url);
  assert.equal(json(relay, 'doc', handle.url).changes, 1, 'what is stored stays');
  relay.command('doc', 'unblock', handle.url);
  assert.match(fails(relay, 'doc', 'unblock', handle.url).stderr, /was not blocked/);
  await until('the change is here', () => copy.doc().n === 2);
  assert.equal((await find(t, relay, handle.url)).n, 2);
});

test('an unblocked document continues with the connected clients', async t => {
  const relay = await Relay.start(t);
  const [writer, reader] = [relay.client(t), relay.client(t)];
  const handle = await share(writer, { n: 1 });
  const copy = await reader.repo.find(handle.url);
  relay.command('doc', 'block', handle.url);
  handle.change(doc => { doc.n = 2; });
  await until('it was dropped', async () =>
    await relay.metric('tonk_relay_messages_dropped_total{reason="blocked"}') > 0);
  relay.command('doc', 'unblock', handle.url);
  await until('the change is here', () => copy.doc().n === 2);
  await saved(writer, handle);
});

test('`ping` connects like a client, and names the step that fails', async t => {
  const relay = await Relay.start(t);
  const url = relay.url.replace('http', 'ws');
  const ping = (...words) => promisify(execFile)(BINARY, ['ping', ...words]);
  const said = (await ping(url, '--silence', '1s', '--largest', '2MiB')).stdout;
  for (const step of [/^address +127\.0\.0\.1:/m, /^tls +none/m, /^upgrade +a WebSocket/m, /^join +relay /m,
    /^round trip +to another client: median /m, /^large +a message of 2MiB arrives/m, /^silence +1s, and/m]) {
    assert.match(said, step);
  }
  const documents = json(relay, 'status');
  assert.equal(documents.connections, 0, 'nothing is left of it');

  const server = createServer((request, response) => response.writeHead(404).end()).listen(0, '127.0.0.1');
  atEnd(t, () => server.close());
  await once(server, 'listening');
  const report = JSON.parse((await ping(url, '--silence', '0s', '--largest', '1KiB', '--json')).stdout);
  assert.deepEqual([report.url, report.ok, report.error], [url, true, null]);
  assert.deepEqual(report.steps.map(({ step }) => step), ['address', 'tls', 'upgrade', 'join', 'round trip', 'large']);
  assert.ok(report.steps.at(-1).seconds > 0);
  await assert.rejects(ping('ws://127.0.0.1:1', '--json'), ({ stdout }) => {
    const { ok, steps, error } = JSON.parse(stdout);
    assert.match(error, /^address: 127\.0\.0\.1:1 does not answer/);
    return ok === false && steps.length === 0;
  });
  const fail = (to, said) => assert.rejects(ping(to), error => said.test(error.stderr) || assert.fail(error.stderr));
  await fail(`ws://127.0.0.1:${server.address().port}`, /^upgrade: the server answered HTTP 404 instead of opening a WebSocket/);
  await fail('relay.example.org', /expected a URL such as wss:/);
  await fail('ws://127.0.0.1:1/', /^address: 127.0.0.1:1 does not answer/);
  await fail(url.replace('ws:', 'wss:'), /^tls: /);
  const small = await Relay.start(t, { sync: { max_message: '"1MiB"' } });
  await assert.rejects(ping(small.url.replace('http', 'ws'), '--largest', '2MiB'), /^.*large: refused: .* larger than 1MiB \(sync\.max_message\)/ms);
  const full = await Relay.start(t, { limits: { connections: 1 } });
  await fail(full.ws, /^join: closed with 1013: the relay has reached limits\.connections/);
});
