// A PostgreSQL server for tests, a wire to it, and relays that keep their documents in it.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseAutomergeUrl } from '@automerge/automerge-repo';
import { atEnd, until } from './relay.mjs';

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

  /** Makes these lines decide who may sign in and how. */
  async allow(...lines) {
    await writeFile(join(this.folder, 'data/pg_hba.conf'), lines.map(line => `${line}\n`).join(''));
    this.query('select pg_reload_conf()');
  }

  /** The lines that a statement returns, with columns between bars. */
  query(statement, database = 'postgres') {
    const words = ['-h', this.folder, '-U', 'postgres', '-d', database, '-AtqX', '-v', 'ON_ERROR_STOP=1', '-c', statement];
    return execFileSync('psql', words, { encoding: 'utf8' }).trim();
  }

  /** How many chunks of a document are stored. */
  chunks({ documentId }) {
    const hex = Buffer.from(parseAutomergeUrl(`automerge:${documentId}`).binaryDocumentId).toString('hex');
    return Number(this.query(`select count(*) from tonk_relay.chunk where document = '\\x${hex}'`, 'app'));
  }

  /** A dump of the relays' database. */
  dump() {
    return execFileSync('pg_dump', ['-h', this.folder, '-U', 'postgres', 'app'], { maxBuffer: 64 << 20 });
  }

  /** Replaces what is in the relays' database by a dump. Relays cannot connect meanwhile. */
  async restore(dump) {
    this.query('create role restorer superuser login');
    await this.allow('local all restorer trust', 'local app all reject', 'local all all trust');
    const end = `select count(pg_terminate_backend(pid)) from pg_stat_activity
      where datname = 'app' and backend_type = 'client backend'`;
    await until('nobody is connected', () => this.query(end) === '0');
    const first = 'set client_min_messages = warning; drop schema tonk_relay cascade;\n';
    const words = ['-h', this.folder, '-U', 'restorer', '-d', 'app', '-1qXv', 'ON_ERROR_STOP=1'];
    execFileSync('psql', words, { input: Buffer.concat([Buffer.from(first), dump]), stdio: ['pipe', 'ignore', 'inherit'] });
    await this.allow('local all all trust');
  }

  /** A session that is sent statements, and stays open until its end. */
  session(database) {
    const psql = spawn('psql', ['-h', this.folder, '-U', 'postgres', '-d', database, '-AtqX'], { stdio: ['pipe', 'ignore', 'inherit'] });
    return { send: statements => psql.stdin.write(`${statements}\n`), end: () => psql.stdin.end() };
  }

  /** The URL of a database. */
  url(database = 'app', role = 'postgres') {
    return `postgres://${role}@/${database}?host=${this.folder}`;
  }

  /** The config of a relay that keeps its documents in a database. */
  config(more = {}) {
    return { bundles: { store: '"none"' }, cluster: { database: `"${this.url()}"` }, ...more };
  }
}

/** The messages of a server without its notifications. Each has a letter and a length. */
class WithoutNotifications {
  rest = Buffer.alloc(0);

  pass(data) {
    this.rest = Buffer.concat([this.rest, data]);
    const passed = [];
    while (this.rest.length >= 5 && this.rest.length > this.rest.readUInt32BE(1)) {
      const end = 1 + this.rest.readUInt32BE(1);
      if (this.rest[0] !== 'A'.charCodeAt(0)) passed.push(this.rest.subarray(0, end));
      this.rest = this.rest.subarray(end);
    }
    return Buffer.concat(passed);
  }
}

/**
 * A wire to a server, which can stop carrying anything for a while, as a network that drops packets. If it is deaf, it
 * never carries notifications.
 */
export class Wire {
  /** Connects those who connect to its `port` to the server at `host`. It ends with the test. */
  static async start(t, host, { isDeaf = false } = {}) {
    const wire = new Wire();
    wire.sockets = new Set();
    wire.held = [];
    wire.server = createServer(near => {
      const far = connect(5432, host);
      for (const [from, to] of [[near, far], [far, near]]) {
        wire.sockets.add(from);
        if (wire.isDown) from.pause();
        const filter = isDeaf && from === far ? new WithoutNotifications() : null;
        from.on('data', data => to.write(filter ? filter.pass(data) : data));
        from.on('error', () => {});
        from.on('close', () => {
          wire.sockets.delete(from);
          wire.carry(() => to.destroy());
        });
      }
    });
    wire.server.listen(0, '127.0.0.1');
    await once(wire.server, 'listening');
    wire.port = wire.server.address().port;
    /** The section `cluster` of a relay that uses it. */
    wire.cluster = { database: `"postgres://postgres@127.0.0.1:${wire.port}/app"`, timeout: '"1s"' };
    atEnd(t, () => {
      wire.up();
      for (const socket of wire.sockets) socket.destroy();
      wire.server.close();
    });
    return wire;
  }

  carry(news) {
    if (this.isDown) this.held.push(news);
    else news();
  }

  /** Carries nothing from now on. */
  down() {
    this.isDown = true;
    for (const socket of this.sockets) socket.pause();
  }

  /** Carries everything again, also what has waited. */
  up() {
    this.isDown = false;
    for (const socket of this.sockets) socket.resume();
    for (const news of this.held.splice(0)) news();
  }
}
