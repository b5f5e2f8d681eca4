// Faults of several relays on one PostgreSQL database: after each all clients have the same, everything that
// they were told is saved is there, and no relay was restarted.
import assert from 'node:assert/strict';
import test from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { Postgres, Wire, skip } from './postgres.mjs';
import { BINARY, Relay, atEnd, folder, saved, share, until } from './relay.mjs';

/** Three relays on one database, with a client each, which have a document open. Each relay has a wire to the database. */
async function group(t, binary = BINARY, more = {}) {
  const postgres = await Postgres.start(t, ['-c', 'listen_addresses=127.0.0.83']);
  const [relays, wires] = [[], []];
  while (relays.length < 3) {
    const wire = await Wire.start(t, '127.0.0.83');
    wires.push(wire);
    const relay = Object.assign(new Relay(await folder(t), postgres.config({ cluster: wire.cluster, ...more })), { binary });
    atEnd(t, () => relay.end());
    await relay.start();
    relays.push(relay);
  }
  const clients = relays.map(relay => relay.client(t));
  const first = await share(clients[0], { edits: {} });
  const handles = await Promise.all(clients.map((client, n) => (n === 0 ? first : client.repo.find(first.url))));
  return { postgres, wires, relays, clients, handles };
}

/** Edits of all clients until `ended`, with the keys of those that are known to be saved. */
function editing({ clients, handles }) {
  const told = new Set();
  let ended = false;
  const loops = clients.map(async (client, who) => {
    for (let n = 0; !ended; n += 1) {
      handles[who].change(doc => { doc.edits[`${who}:${n}`] = n; });
      const [upTo, isTold] = [n, saved(client, handles[who]).then(() => true, () => false)];
      if (await Promise.race([isTold, pause(300, false)])) {
        for (let k = 0; k <= upTo; k += 1) told.add(`${who}:${k}`);
      }
      await pause(10);
    }
  });
  return { told, end: async () => { ended = true; await Promise.all(loops); } };
}

const heads = handle => [...handle.heads()].sort().join();

/** Waits until everybody has the same and was told that it is saved, and checks what is stored. */
async function settled(t, { postgres, relays, clients, handles }, told) {
  const start = performance.now();
  await until('all have the same', () => handles.every(handle => heads(handle) === heads(handles[0])));
  const equal = performance.now() - start;
  await Promise.all(clients.map((client, n) => saved(client, handles[n])));
  t.diagnostic(`equal after ${equal.toFixed(0)} ms, saved after ${(performance.now() - start).toFixed(0)} ms, ${told.size} edits`);
  for (const relay of relays) assert.equal(relay.ended, undefined, `without a restart: ${relay.log.slice(-500)}`);
  // What nobody has in memory.
  await Promise.all(relays.map(relay => relay.kill()));
  const fresh = await Relay.start(t, postgres.config());
  const { edits } = (await fresh.client(t).repo.find(handles[0].url)).doc();
  for (const edit of told) assert.ok(edit in edits, `${edit} was told as saved`);
}

/** A test in which a fault happens while all clients edit. */
const during = (name, fault) => test(name, { skip }, async t => {
  const all = await group(t);
  const edits = editing(all);
  await pause(300);
  await fault(all, edits, t);
  await pause(300);
  await edits.end();
  await settled(t, all, edits.told);
});

during('a standby is promoted that lacks commits of all relays', async ({ postgres, relays }) => {
  await postgres.tell('standby');
  await pause(500);
  await postgres.tell('promote');
  await until('a relay has noticed', async () => await relays[0].metric('tonk_relay_database_losses_total') > 0);
});

during('the database stands still, and goes on', async ({ postgres }) => {
  await postgres.tell('freeze');
  await pause(1500);
  await postgres.tell('thaw');
});

during('packets of one relay after the other are dropped, and then those of all', async ({ wires, relays }, { told }) => {
  const isReady = async relay => (await fetch(`${relay.url}/readyz`)).status === 200;
  for (const [n, wire] of wires.entries()) {
    wire.down();
    await until('it is not ready', async () => !await isReady(relays[n]));
    const before = told.size;
    await until('clients of the others are told that they are saved', () => told.size > before + 5);
    wire.up();
    await until('it is ready again', () => isReady(relays[n]));
  }
  wires.forEach(wire => wire.down());
  await until('none is ready', async () => !(await Promise.all(relays.map(isReady))).some(ready => ready));
  wires.forEach(wire => wire.up());
});

during('processes of the server are killed', async ({ postgres }) => {
  for (let round = 0; round < 3; round += 1) {
    // The server recovers after each for a moment, as after a crash.
    const pids = await until('relays are connected', () => {
      try {
        const all = postgres.query("select pid from pg_stat_activity where application_name = 'tonk-relay'").split('\n');
        return all.length > 8 && all;
      } catch {
        return false;
      }
    });
    process.kill(Number(pids[Math.floor(pids.length * (round + 1) / 4)]), 'SIGKILL');
    await pause(400);
  }
});

during('a relay stands still in the middle of its writes, and goes on', async ({ relays, postgres }, { told }) => {
  relays[1].child.kill('SIGSTOP');
  const before = told.size;
  await until('the others go on', () => told.size > before + 10);
  // As after a failover: the server has given up its connections.
  postgres.query("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'tonk-relay'");
  await pause(300);
  relays[1].child.kill('SIGCONT');
});

during('a transaction elsewhere stays open, and looks stay cheap', async ({ postgres, relays }, { told }, t) => {
  postgres.query('create table elsewhere (n int)', 'app');
  const open = postgres.session('app');
  open.send('begin; insert into elsewhere values (1); select pg_sleep(0);');
  const before = told.size;
  await until('edits go on', () => told.size > before + 30);
  const rows = await relays[0].metric('tonk_relay_cluster_rows_total{cause="hint"}');
  const looks = await relays[0].metric('tonk_relay_cluster_looks_total{cause="hint"}');
  t.diagnostic(`${(rows / looks).toFixed(1)} rows a look`);
  assert.ok(rows / looks < 10, 'no row is found twice');
  open.end();
});

during('a large document is stored while others are told that they are saved', async ({ clients }, { told }) => {
  const large = clients[2].repo.create({ data: crypto.getRandomValues(new Uint8Array(60_000)) });
  for (let n = 0; n < 100; n += 1) {
    large.change(doc => { doc[`part${n}`] = crypto.getRandomValues(new Uint8Array(60_000)); });
  }
  const before = told.size;
  await saved(clients[2], large);
  assert.ok(told.size > before);
});

const BEFORE = process.env.TONK_RELAY_BEFORE;
/** Older relays do not know `store = "none"`. No bundle is uploaded, so nothing listens there. */
const S3 = { store: '"s3"', bucket: '"none"', region: '"none"', endpoint_url: '"http://127.0.0.1:9"' };

test('the version before runs beside this one, while relays are upgraded one after the other',
  { skip: skip || (BEFORE ? false : 'needs TONK_RELAY_BEFORE, a relay of the version before') }, async t => {
    const all = await group(t, BEFORE, { bundles: S3 });
    const { relays, postgres } = all;
    const edits = editing(all);
    t.diagnostic(`tables of version ${postgres.query('select format from tonk_relay.meta', 'app')}`);
    for (const relay of relays) {
      await pause(500);
      await relay.stop();
      relay.binary = BINARY;
      await relay.start();
    }
    t.diagnostic(`tables of version ${postgres.query('select format from tonk_relay.meta', 'app')}`);
    await pause(500);
    await edits.end();
    await settled(t, all, edits.told);
  });
