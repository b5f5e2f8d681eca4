// Uploaded bundles: the same behaviour in a local folder and in a real object store.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import * as Automerge from '@automerge/automerge';
import { unzipSync } from 'fflate';
import { Relay, atEnd, bundle, close, documentId, folder, saved, share, until, upload } from './relay.mjs';
import { StrictStore } from './strict-store.mjs';
import { KEYS, Rclone, Store, line, skip, skipRclone } from './store.mjs';

/** A relay whose access keys, if it has any, are in a systemd credential. */
async function start(t, bundles, keys = KEYS, env = {}) {
  const relay = new Relay(await folder(t), { bundles, log: { level: '"info,aws_config=trace,aws_sdk_s3=trace"' } });
  if (keys) await writeFile(join(relay.at, 'aws-credentials'), keys);
  relay.env = { CREDENTIALS_DIRECTORY: relay.at, AWS_EC2_METADATA_DISABLED: 'true', ...env };
  atEnd(t, () => relay.end());
  await relay.start();
  return relay;
}

/** A bundle that is uploaded in parts. */
const large = id => bundle({ [id]: { bytes: new Uint8Array(randomBytes(9 << 20)) } });

/** A new store first creates its volumes, which takes a while. */
const warm = (relay, root) => until('the store stores', async () =>
  (await upload(relay, bundle({ [root]: { n: 1 } }))).status === 200);

/** The kinds of stores, and why tests of them are skipped. */
const STORES = [['folder', false], ['s3', skip, Store], ['s3 without conditions', skipRclone, Rclone]];

for (const [kind, skip, Kind] of STORES) {
  test(`${kind}: bundles are downloaded unchanged: whole, in part, slim`, { skip }, async t => {
    const store = await Kind?.start(t);
    const relay = await start(t, store?.config() ?? {});
    // The commands of a stopped relay use the same keys.
    Object.assign(process.env, relay.env);
    const [root, other] = [documentId(1), documentId(2)];
    const url = `${relay.url}/api/bundles/${root}`;
    assert.equal((await fetch(url)).status, 404);
    await warm(relay, root);
    if (store) {
      const what = Kind === Rclone ? 'ignores' : 'supports';
      const isKnown = () => relay.log.includes(`the bundle store ${what} conditional writes`);
      await until('it knows what the store can do', isKnown);
    }
    const bodies = [bundle({ [root]: { n: 1 }, [other]: { n: 2 } })];
    // rclone does not answer multipart uploads as S3 does.
    if (Kind !== Rclone) bodies.push(large(root));
    for (const body of bodies) {
      const stored = await upload(relay, body);
      assert.equal(stored.status, 200, await stored.clone().text());
      const whole = await fetch(url);
      assert.ok(Buffer.from(await whole.arrayBuffer()).equals(Buffer.from(body)));
      assert.equal(whole.headers.get('content-length'), String(body.length));
      const etag = whole.headers.get('etag');
      assert.equal((await fetch(url, { headers: { 'if-none-match': etag } })).status, 304);
      const part = await fetch(url, { headers: { range: 'bytes=10-19', 'if-range': etag } });
      assert.equal(part.status, 206);
      assert.ok(Buffer.from(await part.arrayBuffer()).equals(Buffer.from(body.subarray(10, 20))));
      for (let time = 0; time < 2; time++) {
        const slim = await fetch(`${url}/manifest`);
        const entries = Object.keys(unzipSync(new Uint8Array(await slim.arrayBuffer())));
        assert.equal(entries.length, 2);
        assert.ok(entries.every(name => !name.includes(other.slice(2))));
      }
    }
    // The configured number of former generations is kept.
    for (let n = 0; n < 5; n++) assert.equal((await upload(relay, bundle({ [root]: { n } }))).status, 200);
    const former = store
      ? store.list(`apps/former/${root}`)
      : await readdir(join(relay.at, 'bundles/former', root));
    assert.equal(former.length, 3, `${former}`);
    assert.ok(former.every(name => /^[0-9a-f]{64}\.tonk$/.test(name)), `${former}`);
    // Two simultaneous uploads leave one whole bundle.
    const both = [bundle({ [root]: { both: 1 } }), bundle({ [root]: { both: 2 } })];
    const answers = await Promise.all(both.map(body => upload(relay, body)));
    assert.deepEqual(answers.map(({ status }) => status), [200, 200]);
    const left = Buffer.from(await (await fetch(url)).arrayBuffer());
    assert.ok(both.some(body => left.equals(Buffer.from(body))));

    const receipt = JSON.parse(relay.command('doc', 'delete', root, '--json'));
    assert.equal(receipt.bundle, true);
    assert.equal((await fetch(url)).status, 404);
    if (store) {
      assert.deepEqual(store.list('apps/bundles'), []);
      assert.deepEqual(store.list(`apps/former/${root}`), []);
      const printed = execFileSync(process.env.TONK_RELAY,
        ['--print-config', '--config', join(relay.at, 'tonk-relay.toml')], { encoding: 'utf8' });
      assert.ok(!/a-secret-of-the-test|AKIATEST/.test(relay.log + printed));
    }
  });
}

for (const [kind, skip, Kind] of STORES) {
  test(`${kind}: an uploaded bundle's documents are found by sync, permanently`, { skip }, async t => {
    const store = await Kind?.start(t);
    const relay = await start(t, store?.config() ?? {});
    Object.assign(process.env, relay.env);
    await warm(relay, documentId(99));
    const client = relay.client(t);
    // No client stays connected that could send a document again.
    const find = async id => {
      const once = relay.client(t);
      try { return (await once.repo.find(`automerge:${id}`)).doc(); } finally { await close(once); }
    };
    const [root, leaf, foreign, gone] = [1, 2, 3, 4].map(documentId);

    // Existing documents are kept: one of the same id with another history, and one that was
    // deleted.
    const mine = client.repo.import(Automerge.save(Automerge.from({ mine: true })), { docId: foreign });
    await saved(client, mine);
    const lost = client.repo.import(Automerge.save(Automerge.from({ n: 1 })), { docId: gone });
    await saved(client, lost);
    relay.command('doc', 'delete', gone);
    let leafDoc = Automerge.from({ text: 'one' });
    const contents = { [root]: { leaf }, [leaf]: leafDoc, [foreign]: { theirs: true }, [gone]: { n: 2 } };
    const answer = await (await upload(relay, bundle(contents))).json();
    assert.equal(answer.id, root);
    const { refused, ...counts } = answer.imported;
    assert.deepEqual(counts, { documents: 4, new: 2, newer: 0, contained: 0 });
    assert.deepEqual(refused.map(({ document }) => document).sort(), [foreign, gone].sort());
    assert.equal((await fetch(`${relay.url}/api/bundles/${root}/manifest`)).status, 200);
    assert.deepEqual((await find(leaf)).text, 'one');
    assert.deepEqual(await find(foreign), { mine: true });
    await assert.rejects(find(gone), /unavailable/);

    // A live document gets the changes of a later upload, and an upload with fewer changes removes
    // nothing.
    const live = await client.repo.find(`automerge:${leaf}`);
    live.change(doc => { doc.edited = true; });
    await saved(client, live);
    const older = bundle({ [root]: { leaf }, [leaf]: leafDoc });
    leafDoc = Automerge.change(leafDoc, doc => { doc.text = 'two'; });
    const newer = (await (await upload(relay, bundle({ [root]: { leaf }, [leaf]: leafDoc }))).json()).imported;
    assert.equal(newer.newer, 1);
    await until('the live document has it', () => live.doc().text === 'two' && live.doc().edited);
    await upload(relay, older);
    assert.deepEqual({ ...(await find(leaf)) }, { text: 'two', edited: true });

    // Two simultaneous uploads lose no documents of either.
    const shared = documentId(7);
    const base = Automerge.from({ list: [] });
    const sides = ['left', 'right'].map(side =>
      Automerge.change(Automerge.clone(base), doc => { doc[side] = true; }));
    const answers = await Promise.all(sides.map(doc => upload(relay, bundle({ [shared]: doc }))));
    assert.deepEqual(answers.map(({ status }) => status), [200, 200]);
    assert.deepEqual({ ...(await find(shared)) }, { list: [], left: true, right: true });

    // A bundle in the store that was not imported yet is imported before it is fetched.
    await close(client);
    await relay.stop();
    await rm(relay.documents, { recursive: true });
    await relay.start();
    assert.equal((await fetch(`${relay.url}/api/bundles/${root}/manifest`)).status, 200);
    assert.equal((await find(leaf)).text, 'one', 'as in the bundle that was uploaded last');
    const imports = () => relay.metric('tonk_relay_bundle_imports_total{result="imported"}');
    assert.equal(await imports(), 1);
    await Promise.all([1, 2, 3].map(() => fetch(`${relay.url}/api/bundles/${root}`)));
    await relay.restart();
    await fetch(`${relay.url}/api/bundles/${root}`);
    assert.equal(await imports(), 0, 'once');
    await Promise.all([1, 2, 3].map(() => fetch(`${relay.url}/api/bundles/${shared}/manifest`)));
    assert.equal(await imports(), 1, 'once, however many clients request it');

    // A document that cannot be read does not affect the others.
    const [good, bad] = [8, 9].map(documentId);
    const files = join(relay.documents, bad.slice(0, 2), bad.slice(2));
    await mkdir(files, { recursive: true });
    await writeFile(join(files, 'incremental'), 'a file in the place of a folder');
    const partly = await (await upload(relay, bundle({ [good]: { n: 8 }, [bad]: { n: 9 } }))).json();
    assert.deepEqual(partly.imported.refused.map(({ document }) => document), [bad]);
    assert.equal((await find(good)).n, 8);
    assert.equal((await fetch(`${relay.url}/api/bundles/${good}/manifest`)).status, 200);

    // A broken bundle in the store is reported, and the relay keeps working.
    if (!store) {
      await writeFile(join(relay.at, 'bundles', `${root}.tonk`), 'no bundle');
      assert.equal(await (await fetch(`${relay.url}/api/bundles/${root}`)).text(), 'no bundle', 'as it is');
      for (let time = 0; time < 2; time++) {
        const broken = await fetch(`${relay.url}/api/bundles/${root}/manifest`);
        assert.equal(broken.status, 500);
        assert.match((await broken.json()).error, /^The stored bundle is damaged: not a ZIP/);
      }
    }
  });
}

test('an upload does not replace a document of the served bundle by one with another history', async t => {
  const at = await folder(t);
  const [root, leaf] = [documentId(1), documentId(2)];
  const served = Automerge.from({ text: 'of the app' });
  await writeFile(join(at, 'app.tonk'), bundle({ [root]: { leaf }, [leaf]: served }));
  const relay = await Relay.start(t, { bundle: { path: `"${join(at, 'app.tonk')}"` } });
  const other = Automerge.from({ n: 1 });
  const send = async doc => (await (await upload(relay, bundle({ [documentId(5)]: other, [leaf]: doc }))).json()).imported;
  assert.deepEqual((await send({ text: 'of somebody' })).refused.map(({ document }) => document), [leaf]);
  assert.equal((await (await relay.client(t).repo.find(`automerge:${leaf}`)).doc()).text, 'of the app');
  const next = Automerge.change(served, doc => { doc.text = 'of the app, edited'; });
  assert.deepEqual((await send(next)).refused, []);
  assert.equal((await (await relay.client(t).repo.find(`automerge:${leaf}`)).doc()).text, 'of the app, edited');
});

test('s3: a store without checksums and access keys for only two folders work', async t => {
  const prefix = 'my apps+1/';
  const store = await StrictStore.start(t, prefix);
  const relay = await start(t, store.config());
  await until('it knows what the store can do', () => relay.log.includes('the bundle store supports conditional writes'));
  const root = documentId(1);
  for (const body of [bundle({ [root]: { n: 1 } }), bundle({ [root]: { n: 2 } }), large(root)]) {
    const stored = await upload(relay, body);
    assert.equal(stored.status, 200, await stored.text());
    // Its documents are still being imported.
    const found = await until('it can be read', async () => {
      const answer = await fetch(`${relay.url}/api/bundles/${root}`);
      return answer.status === 200 && answer;
    }, 60);
    assert.ok(Buffer.from(await found.arrayBuffer()).equals(Buffer.from(body)));
  }
  assert.equal(store.list(`${prefix}former/${root}/`).length, 2);
  assert.deepEqual(store.list(`${prefix}bundles/`), [`${root}.tonk`], 'nothing is left of what it tried');
  assert.doesNotMatch(relay.command('status'), /bundles: cannot reach the store/);
  await relay.end();

  // An operator who wants checksums can set the SDK's own variable.
  const sums = await start(t, store.config(), KEYS, { AWS_REQUEST_CHECKSUM_CALCULATION: 'when_supported' });
  assert.equal((await upload(sums, bundle({ [root]: { n: 3 } }))).status, 503, 'this store refuses them');
  await sums.end();

  const strange = await start(t, store.config(), KEYS.replace('AKIATEST', 'AKIAOTHER'));
  await until('the fault is reported', () =>
    /bundles: cannot reach the store: cannot find the bucket \S+: the store refuses these access keys \(HTTP 403\)/.test(strange.command('status')));
  assert.equal((await upload(strange, bundle({ [root]: { n: 4 } }))).status, 503);
});

test('s3: when the store stalls requests are answered with 503 in bounded time, and sync continues', { skip }, async t => {
  const store = await Store.start(t);
  const relay = await start(t, store.config({ timeout: '"1s"' }));
  const root = documentId(1);
  await warm(relay, root);
  store.stall();
  atEnd(t, () => store.go());
  const began = Date.now();
  const answers = await Promise.all([
    fetch(`${relay.url}/api/bundles/${root}`), upload(relay, bundle({ [root]: { n: 2 } })), upload(relay, large(root)),
  ]);
  assert.deepEqual(answers.map(({ status }) => status), [503, 503, 503]);
  assert.ok(answers.every(({ headers }) => headers.get('retry-after') === '5'));
  assert.ok(Date.now() - began < 10_000);
  assert.match(relay.command('status'), /degraded +bundles: cannot reach the store/);
  assert.equal((await fetch(`${relay.url}/readyz`)).status, 200, 'sync is offered all the same');
  const client = relay.client(t);
  const handle = await share(client, { n: 1 });
  handle.change(doc => { doc.n = 2; });
  await saved(client, handle);
  assert.deepEqual(await readdir(join(relay.at, 'bundles/.incoming')), [], 'nothing is left behind');
  store.go();
  await until('it is back', async () => (await fetch(`${relay.url}/api/bundles/${root}`)).status === 200);
  await until('no fault is found', () => !relay.command('status').includes('cannot reach the store'));
});

test('s3: without a store, bucket or valid key the relay starts, reports it, and syncs', { skip }, async t => {
  const store = await Store.start(t);
  for (const [config, keys, expected] of [
    [{ endpoint_url: '"http://127.0.0.1:9"' }, KEYS, /bundles: cannot reach the store/],
    [{ bucket: '"nowhere"' }, KEYS, /bundles: cannot reach the store/],
    [{}, KEYS.replace('a-secret-of-the-test', 'another'), /the store refuses these access keys \(HTTP 403\)/],
    [{}, '', /no access keys were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the systemd credential aws-credentials/],
  ]) {
    const relay = await start(t, store.config(config), keys);
    await until('it is reported', () => expected.test(relay.command('status')));
    // SeaweedFS creates a missing bucket.
    if (!config.bucket) assert.equal((await upload(relay, bundle({ [documentId(1)]: { n: 1 } }))).status, 503);
    assert.equal((await fetch(`${relay.url}/readyz`)).status, 200);
    await share(relay.client(t), { n: 1 });
    await relay.end();
  }
});

test('s3: a truncated response is an error, and the next one is complete', { skip }, async t => {
  const store = await Store.start(t);
  const cut = await line(t, store);
  const relay = await start(t, store.config({ endpoint_url: `"http://127.0.0.1:${cut.port}"` }));
  const root = documentId(1);
  await warm(relay, documentId(99));
  const body = large(root);
  assert.equal((await upload(relay, body)).status, 200);
  const url = `${relay.url}/api/bundles/${root}`;
  cut.left = 1 << 20;
  const download = await fetch(url);
  assert.equal(download.status, 200);
  await assert.rejects(download.arrayBuffer(), 'the client sees that it is incomplete');
  assert.equal((await fetch(`${url}/manifest`)).status, 503);
  // It is not imported yet, and a truncated bundle is not imported either.
  await relay.stop();
  await rm(relay.documents, { recursive: true });
  await relay.start();
  assert.equal((await fetch(url)).status, 503);
  cut.left = Infinity;
  assert.equal((await fetch(`${url}/manifest`)).status, 200);
  assert.ok(Buffer.from(await (await fetch(url)).arrayBuffer()).equals(Buffer.from(body)));
  assert.deepEqual(await readdir(join(relay.at, 'bundles/.incoming')), [], 'nothing is left behind');

  // A line that stalls in the middle of a response and of an upload: both end in bounded time.
  const began = Date.now();
  cut.holdsAfter = 1 << 20;
  const halfway = await fetch(url);
  const reader = halfway.body.getReader();
  await reader.read();
  await assert.rejects(async () => { while (!(await reader.read()).done); });
  assert.equal((await upload(relay, body)).status, 503);
  assert.ok(Date.now() - began < 20_000);
  Object.assign(cut, { holds: false, holdsAfter: undefined });

  // A multipart upload that was only begun is aborted when the line works again.
  cut.cutAt = 'uploadId=';
  assert.equal((await upload(relay, body)).status, 503);
  assert.match(relay.log, /cannot abort a failed upload; retrying when the bundle store answers again/);
  assert.ok(store.uploads().length > 0, 'it is there');
  Object.assign(cut, { cutAt: undefined, left: Infinity });
  await until('it is gone', () => store.uploads().length === 0);
});

test('s3: when the store throttles requests are answered with 503, and the relay retries', { skip }, async t => {
  const store = await Store.start(t);
  const relay = await start(t, store.config());
  const root = documentId(1);
  await warm(relay, root);
  store.shell('s3.circuitBreaker -global -type Count -actions Read,Write -values 0,0 -apply');
  const url = `${relay.url}/api/bundles/${root}`;
  const throttled = await until('it throttles', async () => {
    const answer = await upload(relay, bundle({ [root]: { n: 2 } }));
    return answer.status === 503 && answer;
  });
  assert.equal(throttled.headers.get('retry-after'), '5');
  await share(relay.client(t), { n: 1 });
  store.shell('s3.circuitBreaker -global -disable -apply');
  await until('it is back', async () => (await fetch(url)).status === 200);
  assert.equal((await upload(relay, bundle({ [root]: { n: 3 } }))).status, 200);
});
