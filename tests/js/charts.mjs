// Draws a few panels of the overview dashboard: node tests/js/charts.mjs OUT.svg [SECONDS]
// The values come from a real Prometheus that scrapes a relay under load; the drawing is this
// script's. Needs the same as monitoring.test.mjs, and TONK_RELAY with the path of the relay.
import { writeFile } from 'node:fs/promises';
import { dashboards } from '../../packaging/grafana/generate.mjs';
import { ceiling } from './axis.mjs';
import { Prometheus, config, filled, load, skip } from './prometheus.mjs';
import { Relay, folder, until } from './relay.mjs';

const [out, seconds = '90'] = process.argv.slice(2);
if (!out) throw new Error('usage: node tests/js/charts.mjs OUT.svg [SECONDS]');
if (skip) throw new Error(skip);
// The window of a rate: the process counts whole seconds of CPU.
const PANELS = [['Connections'], ['New changes'], ['Message time'], ['CPU cores', '30s']];
const COLOURS = ['#3274d9', '#e0752d', '#56a64b', '#b877d9'];
const [WIDTH, HEIGHT, GAP] = [440, 190, 20];
const PLOT = { left: 56, right: 12, top: 34, bottom: 40 };

/** The parts of a test context that the helpers use. */
const ends = [];
const t = { after: end => ends.push(end) };

/** A value as an axis shows it. */
function shown(value, unit) {
  const round = number => String(Number(number.toPrecision(3)));
  if (unit === 's') return value < 1 ? `${round(value * 1000)} ms` : `${round(value)} s`;
  return `${round(value)}${unit === 'cps' ? '/s' : ''}`;
}

/** One panel at `x`, `y`; `series` are `{ name, points: [[time, value], ...] }`. */
function chart({ title, unit, series, x, y, from, to }) {
  const high = ceiling(Math.max(...series.flatMap(({ points }) => points.map(([, value]) => value))));
  const [inner, tall] = [WIDTH - PLOT.left - PLOT.right, HEIGHT - PLOT.top - PLOT.bottom];
  const across = time => (PLOT.left + (time - from) / (to - from) * inner).toFixed(1);
  const up = value => (PLOT.top + tall - value / high * tall).toFixed(1);
  const parts = [`<text class="title" x="12" y="20">${title}</text>`];
  for (const share of [0, 0.5, 1]) {
    const at = up(high * share);
    parts.push(`<path class="grid" d="M${PLOT.left} ${at}h${inner}"/>`);
    const figure = shown(high * share, unit);
    parts.push(`<text x="${PLOT.left - 6}" y="${Number(at) + 4}" text-anchor="end">${figure}</text>`);
  }
  for (const after of [0, Math.round((to - from) / 2), Math.round(to - from)]) {
    const anchor = after === 0 ? 'start' : after >= to - from ? 'end' : 'middle';
    parts.push(`<text x="${across(from + after)}" y="${HEIGHT - 24}" text-anchor="${anchor}">${after} s</text>`);
  }
  series.forEach(({ name, points }, n) => {
    const line = points.map(([time, value]) => `${across(time)},${up(value)}`).join(' ');
    parts.push(`<polyline points="${line}" stroke="${COLOURS[n % COLOURS.length]}"/>`);
    if (series.length === 1) return;
    const at = PLOT.left + n * 90;
    parts.push(`<path d="M${at} ${HEIGHT - 11}h12" stroke="${COLOURS[n % COLOURS.length]}" stroke-width="2"/>`);
    parts.push(`<text x="${at + 17}" y="${HEIGHT - 7}">${name}</text>`);
  });
  return `<g transform="translate(${x} ${y})"><rect width="${WIDTH}" height="${HEIGHT}" rx="3"/>${parts.join('')}</g>`;
}

try {
  const at = await folder(t);
  const relay = await Relay.start(t, await config(at), at);
  const prometheus = await Prometheus.start(t, relay);
  await until('it is scraped', async () => (await prometheus.query('tonk_relay_ready')).length === 1);
  const from = Date.now() / 1000;
  const to = from + Number(seconds);
  // Clients come in three waves.
  for (let wave = 0; wave < 3; wave++) {
    await load(t, relay, 5);
    const next = from + Number(seconds) * (wave + 1) / 3;
    await until('the next wave', () => Date.now() / 1000 > next, Number(seconds));
  }
  const drawn = [];
  for (const [n, [title, interval]] of PANELS.entries()) {
    const panel = dashboards.overview.panels.find(panel => panel.type === 'timeseries' && panel.title === title);
    const series = [];
    // The limit is far above all values.
    for (const { expr, legendFormat } of panel.targets.filter(target => !target.legendFormat.startsWith('limit'))) {
      for (const { values } of await prometheus.range(filled(expr, interval), from, to, 1)) {
        const points = values.map(([time, text]) => [time, Number(text)]).filter(([, value]) => isFinite(value));
        series.push({ name: legendFormat.replace('{{instance}}', '').trim(), points });
      }
    }
    const [x, y] = [GAP + n % 2 * (WIDTH + GAP), GAP + Math.floor(n / 2) * (HEIGHT + GAP)];
    drawn.push(chart({ title, unit: panel.fieldConfig.defaults.unit, series, x, y, from, to }));
  }
  const rows = Math.ceil(PANELS.length / 2);
  const [width, height] = [GAP * 3 + WIDTH * 2, GAP + rows * (HEIGHT + GAP)];
  const size = `viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"`;
  await writeFile(out, `<svg xmlns="http://www.w3.org/2000/svg" ${size}>
<title>From a Prometheus that scraped a loaded tonk-relay</title>
<style>text{font:11px sans-serif;fill:#555}.title{font-size:13px;font-weight:600;fill:#222}rect{fill:#fff;stroke:#ddd}
.grid{stroke:#e5e5e5}polyline{fill:none;stroke-width:1.5;stroke-linejoin:round}</style>
<rect width="${width}" height="${height}" style="fill:#f7f8fa;stroke:none"/>
${drawn.join('\n')}
</svg>
`);
} finally {
  for (const end of ends) await end();
}
// automerge-repo's timers of closed clients keep Node running.
process.exit();
