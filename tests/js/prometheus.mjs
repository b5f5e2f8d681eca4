// A real Prometheus that scrapes a relay, and a load for the relay.
import { execFileSync, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { WebSocket } from 'ws';
import { Program } from './program.mjs';
import { atEnd, bundle, close, documentId, folder, share, until, upload } from './relay.mjs';

export const PACKAGING = fileURLToPath(new URL('../../packaging/', import.meta.url));
export const RULES = join(PACKAGING, 'prometheus', 'tonk-relay.rules.yml');

const has = tool => !spawnSync(tool, ['--version']).error;
/** Why tests that need it are skipped. */
export const skip = has('prometheus') && has('promtool') ? false
  : 'needs Prometheus: apt-get install --no-install-recommends prometheus';

/** The expression of a panel, with the variables as Grafana fills them in. */
export const filled = (expr, interval = '10s') => expr
  .replaceAll('$__rate_interval', interval).replaceAll('$__interval', interval)
  .replaceAll('$job', 'tonk-relay').replaceAll('$instance', '.+');

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  await new Promise(resolve => server.close(resolve));
  return port;
}

export class Prometheus {
  /** A Prometheus that scrapes a relay and evaluates the rules every second. */
  static async start(t, relay) {
    const prometheus = new Prometheus();
    const at = await folder(t);
    await writeFile(join(at, 'prometheus.yml'), `
      global: { scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }
      rule_files: [${RULES}]
      scrape_configs:
        - job_name: tonk-relay
          static_configs: [{ targets: ['127.0.0.1:${relay.port}'] }]`);
    // Another process may use the port before Prometheus does.
    for (let tries = 0; !(await prometheus.run(t, at, await freePort())); tries++) {
      if (tries === 3) throw new Error(`Prometheus does not start:\n${prometheus.program.output}`);
    }
    return prometheus;
  }

  /** Starts it. Returns whether it is ready. */
  async run(t, at, port) {
    this.url = `http://127.0.0.1:${port}`;
    this.program = new Program('prometheus', [
      `--config.file=${at}/prometheus.yml`, `--storage.tsdb.path=${at}/data`, `--web.listen-address=127.0.0.1:${port}`,
      '--log.level=warn',
    ], { stdio: ['ignore', 'ignore', 'pipe'] });
    atEnd(t, () => this.program.kill());
    return until('Prometheus is ready, or has ended', async () => {
      if (this.program.ended) return 'ended';
      return (await fetch(`${this.url}/-/ready`).catch(() => undefined))?.ok && 'ready';
    }).then(state => state === 'ready');
  }

  async get(path, words) {
    const answer = await (await fetch(`${this.url}/api/v1/${path}?${new URLSearchParams(words)}`)).json();
    if (answer.status !== 'success') throw new Error(`${JSON.stringify(words)}: ${answer.error}`);
    return answer.data;
  }

  /** The current value of an expression: `[{ metric, value: [time, text] }]`. */
  async query(query) { return (await this.get('query', { query })).result; }

  /** The values of an expression over time: `[{ metric, values: [[time, text], ...] }]`. */
  async range(query, start, end, step) {
    return (await this.get('query_range', { query, start, end, step })).result;
  }
}

/** The config of a relay under load: it serves a bundle, and unloads documents soon. */
export async function config(at) {
  const served = join(at, 'app.tonk');
  await writeFile(served, bundle({ [documentId(1)]: { served: true } }));
  return { bundle: { path: `"${served}"` }, sync: { idle_unload: '"1s"', forward_timeout: '"1s"' } };
}

/**
 * Everything that a relay does, once; and edits, presence and visits until the clients are closed.
 */
export async function load(t, relay, clients = 4) {
  const writers = Array.from({ length: clients }, () => relay.client(t));
  const handles = [];
  for (const writer of writers) handles.push(await share(writer, { n: 0 }));
  for (const [n, writer] of writers.entries()) {
    await writer.repo.find(handles[(n + 1) % clients].url);
    const timer = setInterval(() => {
      if (writer.closed) return clearInterval(timer);
      handles[n].change(doc => { doc.n++; });
      handles[n].broadcast({ n });
    }, 20 + 15 * n);
  }
  // Visitors: one joins and leaves, one requests an unknown document, and one is refused.
  let visits = 0;
  const timer = setInterval(async () => {
    if (writers[0].closed) return clearInterval(timer);
    const nobodys = Uint8Array.from({ length: 16 }, (_, at) => at ? 7 : visits++);
    writers[0].repo.find(`automerge:${documentId(nobodys)}`).catch(() => {});
    const stranger = new WebSocket(relay.ws);
    stranger.on('open', () => stranger.send('not part of this protocol'));
    stranger.on('error', () => {});
    const visitor = relay.client(t);
    await visitor.repo.find(handles[0].url).catch(() => {});
    await close(visitor);
  }, 1500);
  const stored = await upload(relay, bundle({ [documentId(2)]: { uploaded: true } }));
  if (!stored.ok) throw new Error(await stored.text());
  for (const path of ['/.manifest.tonk', `/api/bundles/${documentId(2)}`, '/none']) {
    await (await fetch(relay.url + path)).arrayBuffer();
  }
  relay.command('backup', join(relay.at, 'backup'));
}

/** The output of a command, which must succeed. */
export const run = (...words) => execFileSync(words[0], words.slice(1), { encoding: 'utf8', stdio: 'pipe' });
