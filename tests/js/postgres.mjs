// A PostgreSQL server for tests, and relays that keep their documents in it.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { atEnd } from './relay.mjs';

/** Why tests that need it are skipped. */
export const skip = spawnSync('psql', ['--version']).error ? 'needs PostgreSQL' : false;

const SCRIPT = fileURLToPath(new URL('../postgres-server', import.meta.url));

export class Postgres {
  /** Starts a server with further arguments, on the disk at `disk`. It ends with the test. */
  static async start(t, words = [], disk = tmpdir()) {
    const server = new Postgres();
    const env = { ...process.env, TMPDIR: disk };
    server.child = spawn(SCRIPT, words, { env, stdio: ['pipe', 'pipe', 'inherit'] });
    server.lines = createInterface({ input: server.child.stdout })[Symbol.asyncIterator]();
    const ended = new Promise(resolve => server.child.once('close', resolve));
    atEnd(t, () => { server.child.stdin.end(); return ended; });
    const { value } = await server.lines.next();
    if (!value) throw new Error('PostgreSQL has not started');
    server.folder = value;
    server.query('create database app');
    return server;
  }

  /** A command of `postgres-server`: start, kill, stop, freeze or thaw. */
  async tell(command) {
    this.child.stdin.write(`${command}\n`);
    const { value } = await this.lines.next();
    if (value !== 'done') throw new Error(`${command}: ${value}`);
  }

  /** The lines that a statement returns, with columns between bars. */
  query(statement, database = 'postgres') {
    const words = ['-h', this.folder, '-U', 'postgres', '-d', database, '-AtqX', '-v', 'ON_ERROR_STOP=1', '-c', statement];
    return execFileSync('psql', words, { encoding: 'utf8' }).trim();
  }

  /** The URL of a database. */
  url(database = 'app', role = 'postgres') {
    return `postgres://${role}@/${database}?host=${this.folder}`;
  }

  /** The config of a relay that keeps its documents in a database. */
  config(more = {}) {
    // No bundle is uploaded, so nothing listens there.
    const bundles = { store: '"s3"', bucket: '"none"', region: '"none"', endpoint_url: '"http://127.0.0.1:9"' };
    return { bundles, cluster: { database: `"${this.url()}"` }, ...more };
  }
}
