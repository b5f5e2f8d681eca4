// Helpers for the tests of the operator's commands.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { BINARY } from './relay.mjs';

export const url = id => `automerge:${id}`;
export const json = (relay, ...words) => JSON.parse(relay.command(...words, '--json'));
export const find = async (t, relay, url) => (await relay.client(t).repo.find(url)).doc();
export const isUnavailable = (t, relay, url) =>
  assert.rejects(relay.client(t).repo.find(url), /unavailable/);

/** The exit code and the output of a command that fails. */
export function fails(relay, ...words) {
  const config = join(relay.at, 'tonk-relay.toml');
  const { status, stdout, stderr } = spawnSync(BINARY, [...words, '--config', config], { encoding: 'utf8' });
  assert.notEqual(status, 0, `${words.join(' ')}: ${stdout}`);
  return { status, stdout, stderr };
}

export const filesOf = (relay, id) => join(relay.documents, id.slice(0, 2), id.slice(2));

/** Every text in the files of a folder. */
export async function bytesIn(at) {
  const entries = await readdir(at, { recursive: true, withFileTypes: true });
  const files = entries.filter(entry => entry.isFile() && entry.name !== '.reserve');
  const read = await Promise.all(files.map(entry => readFile(join(entry.parentPath ?? entry.path, entry.name))));
  return Buffer.concat(read).toString('latin1');
}
