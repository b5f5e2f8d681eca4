// 100 honest clients of ten documents, and one kind of attack at a time: no honest client is
// disconnected or throttled, every honest edit arrives, and GET /livez is answered within a second.
// Attackers and honest clients have different addresses. FAIR_SECONDS=10 attacks for longer.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { cbor } from '@automerge/automerge-repo';
import { ATTACKS, EMPTY_CHANGES, PREPARED, uploadCopies } from './attacks.mjs';
import { Relay, documentId, until } from './relay.mjs';
import { emptySync, joined, sync } from './raw.mjs';
import { Probe } from './probe.mjs';

const SECONDS = Number(process.env.FAIR_SECONDS ?? 0);
/** How long clients work before a long measurement, in ms. */
const WARM_UP = 5000;
/** The longest time that GET /livez may take, in ms. */
const LIVEZ = 1000;
const DOCUMENTS = 10;
const MEMBERS = 10;
const TICK = 100;
const EPHEMERAL = Buffer.from('ephemeral');
const wait = ms => new Promise(resolve => setTimeout(resolve, ms));
const quantile = (numbers, share) => numbers.toSorted((a, b) => a - b)[Math.floor((numbers.length - 1) * share)] ?? NaN;

/** One honest client of one document. */
class Member {
  static async join(t, relay, team, n) {
    const member = Object.assign(new Member(), { team, n, doc: Automerge.init(), state: Automerge.initSyncState() });
    const name = `honest-${team.n}-${n}`;
    member.socket = await joined(t, relay, name, { localAddress: `127.0.2.${1 + team.n}` });
    member.socket.removeAllListeners('message');
    member.socket.on('message', data => member.hear(data));
    return member;
  }

  hear(data) {
    const now = performance.now();
    // Most messages are presence, which is not decoded.
    if (data.includes(EPHEMERAL)) { this.team.presence++; return; }
    const message = cbor.decode(data);
    if (message.type !== 'sync') return;
    const before = this.doc;
    [this.doc, this.state] = Automerge.receiveSyncMessage(this.doc, this.state, message.data);
    this.talk();
    if (before === this.doc) return;
    for (const [writer, times] of this.team.sent.entries()) {
      for (let n = (before[writer] ?? 0) + 1; n <= (this.doc[writer] ?? 0); n++) if (writer !== this.n) this.team.latencies.push(now - times[n]);
    }
  }

  talk(type = 'sync') {
    const [state, message] = Automerge.generateSyncMessage(this.doc, this.state);
    this.state = state;
    if (message && this.socket.readyState === 1) sync(this.socket, this.team.id, message, type);
  }

  edit() {
    this.doc = Automerge.change(this.doc, doc => { doc[this.n] = (doc[this.n] ?? 0) + 1; });
    this.team.sent[this.n][this.doc[this.n]] = performance.now();
    this.talk();
  }

  bePresent(count) {
    const { us, relay } = this.socket;
    if (this.socket.readyState !== 1) return;
    this.socket.send(cbor.encode({ type: 'ephemeral', documentId: this.team.id, senderId: us, targetId: relay, count, sessionId: us, data: new Uint8Array(20) }));
  }

  hasAll() {
    return this.team.sent.every((times, writer) => (this.doc[writer] ?? 0) === Math.max(0, times.length - 1));
  }
}

/**
 * Honest clients: each sends its presence once a second, and each document is edited three times a
 * second.
 */
class Crowd {
  static async start(t, relay) {
    const crowd = new Crowd();
    crowd.relay = relay;
    crowd.ticks = 0;
    crowd.teams = [];
    // Ten at a time from one address, as fast as one address may connect.
    for (let n = 0; n < DOCUMENTS; n++) {
      const team = { n, id: documentId(crypto.getRandomValues(new Uint8Array(16))), presence: 0, latencies: [], sent: Array.from({ length: MEMBERS }, () => []) };
      team.members = await Promise.all(Array.from({ length: MEMBERS }, (_, n) => Member.join(t, relay, team, n)));
      crowd.teams.push(team);
    }
    for (const { members: [first] } of crowd.teams) first.edit();
    await until('the relay has the documents', () => crowd.teams.every(({ members: [first] }) => first.state.theirHeads?.length));
    for (const { members } of crowd.teams) for (const member of members.slice(1)) member.talk('request');
    await until('every client has its document', () => crowd.hasAll());
    return crowd;
  }

  get members() { return this.teams.flatMap(({ members }) => members); }
  hasAll() { return this.members.every(member => member.hasAll()); }

  /** Works until `isOver`, then waits for all edits to arrive. Returns whether all have. */
  async work(isOver) {
    for (const team of this.teams) Object.assign(team, { presence: 0, latencies: [] });
    this.presenceSent = 0;
    for (let next = performance.now(); !isOver(); next += TICK) {
      const tick = this.ticks++;
      for (const { n, members } of this.teams) {
        members[tick % MEMBERS].bePresent(tick + 1);
        this.presenceSent++;
        if ((tick + n) % 3 === 0) members[Math.floor(tick / 3) % MEMBERS].edit();
      }
      next = Math.max(next, performance.now() - TICK);
      await wait(Math.max(0, next + TICK - performance.now()));
    }
    return until('every edit has arrived', () => this.hasAll()).catch(() => false);
  }
}

/** Runs an attack in a process of its own. */
class Attack {
  static async start(t, relay, name, seconds) {
    const attack = new Attack();
    const file = fileURLToPath(new URL('attacks.mjs', import.meta.url));
    // The attacker's own computation must not slow down the relay; but with a lower priority it
    // would hardly run on a busy machine.
    attack.child = spawn('nice', ['-n', '5', process.execPath, file, name, relay.port, seconds], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
    t.after(() => attack.child.kill('SIGKILL'));
    attack.child.on('message', message => { if (message === 'attacking') attack.isOn = true; else attack.counted = message; });
    // Not 'exit': that may come before the last message.
    attack.child.on('close', () => { attack.isOver = true; });
    await until('the attack begins', () => { assert.ok(!attack.isOver, `${name} failed`); return attack.isOn; }, 60);
    return attack;
  }
}

/** The log lines about throttled honest clients. */
const throttleLines = relay => relay.log.split('\n').filter(line => /honest-/.test(line) && /limits\.|throttl|more slowly/.test(line));

async function throttled(relay) {
  const text = await (await fetch(`${relay.url}/metrics`)).text();
  return [...text.matchAll(/^tonk_relay_throttled_total\{.*\} (\d+)/gm)].reduce((sum, [, n]) => sum + Number(n), 0);
}

const start = t => Relay.start(t, { http: { trusted_proxies: '[]' }, auth: { mode: '"open"' } });

/** Asserts that honest clients keep working during an attack. Returns the attacker's counts. */
async function assertHonestClientsWork(t, relay, crowd, name, seconds) {
  const attack = await Attack.start(t, relay, name, SECONDS || seconds);
  const probe = new Probe(relay.url);
  // An attacker that hangs is killed at the end.
  const end = Date.now() + (SECONDS || seconds) * 1000 + 20_000;
  const allArrived = await crowd.work(() => attack.isOver || Date.now() > end);
  const pages = await probe.stop();
  const livez = Math.max(...pages.map(({ ms }) => ms));
  const latencies = crowd.teams.flatMap(({ latencies }) => latencies);
  const presence = crowd.teams.reduce((sum, { presence }) => sum + presence, 0);
  const ms = number => number.toFixed(0);
  t.diagnostic(`${name}: livez max ${ms(livez)} ms, median ${ms(quantile(pages.map(({ ms }) => ms), 0.5))} of ${pages.length}; edits p50 ${ms(quantile(latencies, 0.5))} ms, ` +
    `p99 ${ms(quantile(latencies, 0.99))}, max ${ms(quantile(latencies, 1))} of ${latencies.length}; presence ${presence} of ${crowd.presenceSent * (MEMBERS - 1)}; ` +
    `attacker ${JSON.stringify(attack.counted)}`);
  const closed = crowd.members.filter(({ socket }) => socket.readyState !== 1);
  const why = closed.length ? JSON.stringify(await closed[0].socket.closed) : '';
  const others = pages.filter(({ status }) => status !== 200);
  const faults = [];
  if (closed.length) faults.push(`${closed.length} honest sockets were closed: ${why}`);
  if (!allArrived) faults.push('not every honest edit arrived');
  if (others.length) faults.push(`GET /livez was answered with ${others[0].status}`);
  if (livez > LIVEZ) faults.push(`GET /livez took ${ms(livez)} ms`);
  if (throttleLines(relay).length) faults.push(`honest clients were throttled: ${throttleLines(relay)[0]}`);
  if (!attack.isOver) faults.push('the attacker did not end');
  assert.deepEqual(faults, []);
  return attack.counted;
}

test('honest clients keep working during attacks that need no preparation', async t => {
  const relay = await start(t);
  const crowd = await Crowd.start(t, relay);
  if (SECONDS) {
    // Lets Node compile hot code first. Otherwise the first values are higher than those under
    // attack.
    const warm = Date.now() + WARM_UP;
    assert.ok(await crowd.work(() => Date.now() > warm), 'every edit arrives');
  }
  await t.test('a busy machine, and no attack', async t => {
    await assertHonestClientsWork(t, relay, crowd, 'elsewhere', 2);
    assert.equal(await throttled(relay), 0);
  });
  for (const name of Object.keys(ATTACKS)) await t.test(name, t => assertHonestClientsWork(t, relay, crowd, name, 0.8));
});

test('honest clients keep working during attacks on computation', async t => {
  // Two rounds of waking.
  const seconds = { wakeDocuments: 4 };
  for (const name of Object.keys(PREPARED)) {
    await t.test(name, async t => {
      const relay = await start(t);
      const crowd = await Crowd.start(t, relay);
      const counted = await assertHonestClientsWork(t, relay, crowd, name, seconds[name] ?? 3);
      if (name === 'subscribing') {
        const { documents, sent, received, seconds } = counted;
        // One message a second for each document, and a few more.
        assert.ok(received <= documents * (seconds + 2) + sent, `${received} messages came of ${sent} about ${documents} documents within ${seconds} s`);
      }
      if (name === 'forwarding') assert.ok(counted.forwarded > 0, 'requests are forwarded');
      if (name === 'wakeDocuments') assert.equal(counted.answered, counted.woken, 'documents are served to clients that open them');
    });
  }
});

test('a session that uses too much processor time is throttled and stays open', async t => {
  const relay = await Relay.start(t, { http: { trusted_proxies: '[]' }, auth: { mode: '"open"' }, log: { repeat: '"1h"' },
    limits: { processor_per_connection: '"10%"' } });
  const crowd = await Crowd.start(t, relay);
  const ids = await uploadCopies(relay.port, EMPTY_CHANGES, 4);
  const costly = await joined(t, relay, 'costly');
  const reason = 'tonk_relay_throttled_total{reason="processor_per_connection"}';
  let [isOver, asked] = [false, 0];
  const working = crowd.work(() => isOver);
  // It repeatedly forgets the document and requests all of it, which is valid but expensive.
  const forget = (async () => {
    for (const end = Date.now() + 30_000; !isOver && Date.now() < end && costly.readyState === 1; asked++) {
      const heard = costly.heard.length;
      sync(costly, ids[asked % ids.length]);
      await until('an answer', () => costly.heard.length > heard || isOver, 30);
    }
  })();
  try {
    await until('it is throttled', async () => await relay.metric(reason) > 0, 30);
  } finally {
    isOver = true;
    t.diagnostic(`after ${asked} requests`);
  }
  await forget;
  assert.ok(await working, 'every honest edit has arrived');
  const lines = relay.log.split('\n').filter(line => line.includes('limits.processor_per_connection'));
  assert.equal(lines.length, 1, lines.join('\n'));
  assert.match(lines[0], /WARN/);
  assert.match(lines[0], /costly/);
  assert.deepEqual(throttleLines(relay), []);
  // It is still served.
  sync(costly, documentId(99));
  await until('an answer', () => costly.heard.some(({ type, documentId: id }) => type === 'doc-unavailable' && id === documentId(99)), 30);
  assert.equal(costly.readyState, 1);
});
