// Draws the results of `cargo bench --bench relay -- growth`: node tests/js/growth.mjs RESULTS OUT.svg
import { readFile, writeFile } from 'node:fs/promises';
import { ceiling } from './axis.mjs';

const [results, out] = process.argv.slice(2);
if (!out) throw new Error('usage: node tests/js/growth.mjs RESULTS OUT.svg');
const [WIDTH, HEIGHT, GAP] = [290, 190, 16];
const PLOT = { left: 46, right: 24, top: 44, bottom: 26 };

/** The measured points by series: `{ name: [[how many, figure], ...] }`. */
const series = {};
for (const line of (await readFile(results, 'utf8')).split('\n').filter(line => line.split('\t').length === 3)) {
  const [name, count, figure] = line.split('\t');
  (series[name] ??= []).push([Number(count), Number(figure)]);
}

/** One chart. The counts are evenly spaced: each is a few times the one before it. */
function chart(name, points, x) {
  const high = ceiling(Math.max(...points.map(([, figure]) => figure)));
  const [inner, tall] = [WIDTH - PLOT.left - PLOT.right, HEIGHT - PLOT.top - PLOT.bottom];
  const across = n => PLOT.left + n / (points.length - 1) * inner;
  const up = figure => PLOT.top + tall - figure / high * tall;
  const [title, by] = name.split(', by ');
  const parts = [`<text class="title" x="12" y="20">${title}</text><text x="12" y="35">by ${by}</text>`];
  for (const share of [0, 0.5, 1]) {
    parts.push(`<path class="grid" d="M${PLOT.left} ${up(high * share)}h${inner}"/>`);
    parts.push(`<text x="${PLOT.left - 6}" y="${up(high * share) + 4}" text-anchor="end">${high * share}</text>`);
  }
  parts.push(`<polyline points="${points.map(([, figure], n) => `${across(n).toFixed(1)},${up(figure).toFixed(1)}`).join(' ')}"/>`);
  points.forEach(([count, figure], n) => {
    parts.push(`<circle cx="${across(n).toFixed(1)}" cy="${up(figure).toFixed(1)}" r="3"/>`);
    parts.push(`<text x="${across(n).toFixed(1)}" y="${(up(figure) - 8).toFixed(1)}" text-anchor="middle">${Number(figure.toPrecision(3))}</text>`);
    parts.push(`<text x="${across(n).toFixed(1)}" y="${HEIGHT - 9}" text-anchor="middle">${count.toLocaleString('en')}</text>`);
  });
  return `<g transform="translate(${x} ${GAP})"><rect width="${WIDTH}" height="${HEIGHT}" rx="3"/>${parts.join('')}</g>`;
}

const drawn = Object.entries(series).map(([name, points], n) => chart(name, points, GAP + n * (WIDTH + GAP)));
const [width, height] = [GAP + drawn.length * (WIDTH + GAP), HEIGHT + 2 * GAP];
await writeFile(out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<title>How the costs of tonk-relay grow</title>
<style>text{font:11px sans-serif;fill:#555}.title{font-size:13px;font-weight:600;fill:#222}rect{fill:#fff;stroke:#ddd}
.grid{stroke:#e5e5e5}polyline{fill:none;stroke:#3274d9;stroke-width:1.5}circle{fill:#3274d9}</style>
<rect width="${width}" height="${height}" style="fill:#f7f8fa;stroke:none"/>
${drawn.join('\n')}
</svg>
`);
