// What make-fixtures.mjs and formats.test.mjs have in common.
import { execFileSync } from 'node:child_process';
import { BINARY } from './relay.mjs';

/** The contents of a document as JSON has them. */
export function plain(value) {
  if (value instanceof Uint8Array) return { bytes: [...value] };
  if (value instanceof Date) return { date: value.getTime() };
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== 'object') return value;
  if (['Counter', 'RawString', 'ImmutableString'].includes(value.constructor?.name)) {
    return { [value.constructor.name]: value.toString() };
  }
  return Object.fromEntries(Object.entries(value).map(([key, value]) => [key, plain(value)]));
}

/** What the relay says is in effect with a config file: the value of each key, by `section.key`. */
export function printedConfig(file) {
  const printed = execFileSync(BINARY, ['--config', file, '--print-config'], { encoding: 'utf8' });
  const values = {};
  let section = '';
  for (const line of printed.split('\n')) {
    const [, header] = /^\[(\w+)\]$/.exec(line) ?? [];
    if (header) section = `${header}.`;
    const [, key, value] = /^(\w+) = (.*?) +# [^#]*$/.exec(line) ?? [];
    if (key) values[section + key] = value;
  }
  return values;
}
