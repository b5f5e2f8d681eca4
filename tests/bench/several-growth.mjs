// What larger groups of relays need, from what single steps cost here:
// cargo bench --bench relay -- several units | node tests/bench/several-growth.mjs
// Prints the costs, how well they predict a group that they were not worked out from, and a table as Markdown.
import { readFileSync } from 'node:fs';

const [head, ...lines] = readFileSync(0, 'utf8').trim().split('\n').filter(line => line.split('\t').length > 5)
  .map(line => line.split('\t'));
const runs = lines.map(line => Object.fromEntries(line.map((value, n) => [head[n], n === 1 ? value : Number(value)])));
/** What is counted of a run. Each costs the database some processor time. */
const COUNTED = {
  'a commit': one => one.commits,
  'a row that is written': one => one.chunks,
  'a notification': one => one.hints + one.messages,
  'and for each relay that hears it': one => (one.hints + one.messages) * one.relays,
  'a look': one => one.looks,
  'a row that a look finds': one => one.found_rows,
  'a relay that does nothing, a second': one => one.relays * one.seconds,
};

/**
 * The costs that explain what the runs took best, by their relative errors. None is negative: one that is too small to be
 * measured is 0. One after the other is set to its best value, until nothing changes.
 */
function costs(runs) {
  const rows = runs.map(one => Object.values(COUNTED).map(count => count(one) / one.database_seconds));
  const found = Object.keys(COUNTED).map(() => 0);
  for (let round = 0; round < 50_000; round += 1) {
    found.forEach((_, n) => {
      const rest = row => 1 - row.reduce((sum, count, k) => k === n ? sum : sum + count * found[k], 0);
      const [above, below] = rows.reduce(([a, b], row) => [a + row[n] * rest(row), b + row[n] ** 2], [0, 0]);
      found[n] = below > 0 ? Math.max(0, above / below) : 0;
    });
  }
  return found;
}

const isCheck = ({ load }) => load.startsWith('check-');
const found = costs(runs.filter(one => !isCheck(one)));
const [commit, row, notify, listener, look, foundRow, poll] = found;
const predicted = one => Object.values(COUNTED).reduce((sum, count, n) => sum + count(one) * found[n], 0);

console.log('processor time of the database, in microseconds:');
Object.keys(COUNTED).forEach((name, n) => console.log(`  ${name.padEnd(36)} ${(found[n] * 1e6).toFixed(1)}`));
console.log('\nseconds of the database that these predict, and that were measured:');
for (const one of runs) {
  const [by, of] = [predicted(one), one.database_seconds].map(seconds => seconds.toFixed(2));
  console.log(`  ${String(one.relays).padStart(2)} relays, ${one.load.padEnd(14)} ${by} ${of}${isCheck(one) ? '  not used above' : ''}`);
}

/** Users of one relay, and how often each edits in a second. */
const [SESSIONS, EDITS] = [15_000, 0.05];
const many = runs.find(({ relays, load }) => relays === 1 && load === 'many');
/** Bytes that a small edit adds to the database's log, with its indexes. */
const LOG = many.log_bytes / many.chunks;

/** What a group needs if each relay commits, sends a hint and looks once every `interval` seconds. */
function needs(relays, interval) {
  const edits = SESSIONS * EDITS;
  const each = Math.min(1 / interval, edits);
  const parts = {
    'commits': relays * each * commit,
    'written rows': relays * edits * row,
    'notifications': relays * each * (notify + relays * listener),
    'looks': relays * Math.min(1 / interval, (relays - 1) * each) * look,
    'found rows': relays * (relays - 1) * edits * foundRow,
    'polls': relays * poll,
  };
  const cores = Object.values(parts).reduce((sum, part) => sum + part, 0);
  const [first, most] = Object.entries(parts).sort(([, a], [, b]) => b - a)[0];
  return { edits: relays * edits, cores, first: `${first}, ${(100 * most / cores).toFixed(0)}%`, log: relays * edits * LOG / 1e6 };
}

console.log('\n| relays | sessions | edits a second | interval | cores of the database | most of it | log, MB/s |');
console.log('|---|---|---|---|---|---|---|');
for (const [relays, interval] of [[3, 0.02], [10, 0.02], [10, 0.05], [67, 0.05]]) {
  const { edits, cores, first, log } = needs(relays, interval);
  const cells = [relays, (relays * SESSIONS).toLocaleString('en'), edits.toLocaleString('en'), `${interval * 1000} ms`,
    cores.toFixed(1), first, log.toFixed(1)];
  console.log(`| ${cells.join(' | ')} |`);
}
