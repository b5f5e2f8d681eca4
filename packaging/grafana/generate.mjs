// Writes the dashboards beside this file: node packaging/grafana/generate.mjs [FOLDER]
// Grafana's JSON says the same things for every panel; here stands what differs. A test compares the two.
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Which relays are shown. The job is in it, as other exporters of the same host have process_... too. */
const SEL = 'job=~"$job", instance=~"$instance"';
const m = (name, labels = '') => `${name}{${SEL}${labels && `, ${labels}`}}`;
const rate = (name, labels) => `rate(${m(name, labels)}[$__rate_interval])`;
const by = (labels, expr) => `sum by (${['instance', ...labels].join(', ')}) (${expr})`;
const limit = key => `max(${m('tonk_relay_limit', `key="${key}"`)})`;
const quantile = (q, name, labels = []) =>
  `histogram_quantile(${q}, ${by([...labels, 'le'], rate(`${name}_bucket`))})`;
/** A labelled metric has no series before its first event: 0 then, and not "No data". */
const orZero = expr => `${expr} or on (instance) 0 * ${by([], m('tonk_relay_build_info'))}`;
const counts = (name, ...labels) => orZero(by(labels, rate(name)));
/** Seconds since a time; 0 where it never was. */
const age = name => `(time() - ${m(name)}) * (${m(name)} > bool 0)`;

const GREEN = 'green', ORANGE = 'orange', RED = 'red';
/** `steps(ORANGE, 80, RED, 90)`: green up to 80. */
const steps = (...pairs) => {
  const all = [{ color: GREEN, value: null }];
  for (let n = 0; n < pairs.length; n += 2) all.push({ color: pairs[n], value: pairs[n + 1] });
  return { mode: 'absolute', steps: all };
};
const falling = (low, enough) => ({
  mode: 'absolute',
  steps: [{ color: RED, value: null }, { color: ORANGE, value: low }, { color: GREEN, value: enough }],
});
const named = (value, text, color) => ({ type: 'value', options: { [value]: { text, color, index: 0 } } });
const datasource = { type: 'prometheus', uid: '${datasource}' };

/** Targets of `[expression, legend]`. */
const targets = (list, more = {}) => list.map(([expr, legendFormat], n) => ({
  refId: String.fromCharCode(65 + n), datasource, editorMode: 'code', expr, legendFormat, range: true, ...more,
}));

/** One figure for each relay. */
function stat(title, description, unit, queries, more = {}) {
  const { thresholds = steps(), mappings = [], decimals, w = 4, graph = true } = more;
  return {
    type: 'stat', title, description, datasource, targets: targets(queries), w, h: 4,
    fieldConfig: {
      defaults: { unit, thresholds, mappings, decimals, color: { mode: 'thresholds' } },
      overrides: [],
    },
    options: {
      colorMode: 'value', graphMode: graph ? 'area' : 'none', justifyMode: 'auto', orientation: 'auto',
      percentChangeColorMode: 'standard', showPercentChange: false, textMode: 'auto', wideLayout: true,
      reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false },
    },
  };
}

/** Lines over time. A query named "limit..." is a dashed red line. */
function lines(title, description, unit, queries, { w = 8, h = 8, stack = false, thresholds } = {}) {
  return {
    type: 'timeseries', title, description, datasource, targets: targets(queries), w, h,
    fieldConfig: {
      defaults: {
        unit, min: 0, color: { mode: 'palette-classic' }, thresholds: thresholds ?? steps(),
        custom: {
          drawStyle: 'line', lineInterpolation: 'linear', lineWidth: 1, fillOpacity: stack ? 30 : 8,
          showPoints: 'never', spanNulls: false, axisPlacement: 'auto',
          stacking: { mode: stack ? 'normal' : 'none', group: 'A' },
          scaleDistribution: { type: 'linear' },
          thresholdsStyle: { mode: thresholds ? 'dashed' : 'off' },
        },
      },
      overrides: [{
        matcher: { id: 'byRegexp', options: '/^limit/' },
        properties: [
          { id: 'color', value: { mode: 'fixed', fixedColor: RED } },
          { id: 'custom.fillOpacity', value: 0 },
          { id: 'custom.lineStyle', value: { fill: 'dash', dash: [8, 8] } },
          { id: 'custom.stacking', value: { mode: 'none', group: 'A' } },
        ],
      }],
    },
    options: {
      legend: { calcs: ['lastNotNull', 'max'], displayMode: 'table', placement: 'bottom', showLegend: true },
      tooltip: { mode: 'multi', sort: 'desc' },
    },
  };
}

/** One row for each relay; `columns` are `[expression, title, unit, more]`. */
function table(title, description, columns, { w = 24, h = 8, hide = [] } = {}) {
  const name = n => columns.length === 1 ? 'Value' : `Value #${String.fromCharCode(65 + n)}`;
  return {
    type: 'table', title, description, datasource, w, h,
    targets: targets(columns.map(([expr]) => [expr, '']), { range: false, instant: true, format: 'table' }),
    transformations: [
      { id: 'merge', options: {} },
      { id: 'organize', options: { excludeByName: Object.fromEntries(['Time', ...hide].map(of => [of, true])) } },
    ],
    fieldConfig: {
      defaults: { thresholds: steps(), custom: { align: 'auto', cellOptions: { type: 'auto' }, inspect: false } },
      overrides: columns.map(([, displayName, unit, { thresholds, mappings } = {}], n) => ({
        matcher: { id: 'byName', options: name(n) },
        properties: [
          { id: 'displayName', value: displayName },
          { id: 'unit', value: unit },
          ...(thresholds ? [
            { id: 'thresholds', value: thresholds }, { id: 'custom.cellOptions', value: { type: 'color-text' } },
          ] : []),
          ...(mappings ? [{ id: 'mappings', value: mappings }] : []),
        ],
      })),
    },
    options: { frameIndex: 0, showHeader: true, cellHeight: 'sm' },
  };
}

function heatmap(title, description, unit, expr, { w = 8, h = 8 } = {}) {
  return {
    type: 'heatmap', title, description, datasource, w, h,
    targets: targets([[expr, '{{le}}']], { format: 'heatmap' }),
    fieldConfig: { defaults: { custom: { scaleDistribution: { type: 'linear' } } }, overrides: [] },
    options: {
      calculate: false, cellGap: 1, filterValues: { le: 1e-9 }, showValue: 'never',
      color: { mode: 'scheme', scheme: 'Blues', exponent: 0.5, fill: 'blue', reverse: false, steps: 32 },
      exemplars: { color: 'rgba(255,0,255,0.7)' }, legend: { show: true }, rowsFrame: { layout: 'auto' },
      tooltip: { mode: 'single', showColorScale: false, yHistogram: false },
      yAxis: { axisPlacement: 'left', reverse: false, unit },
    },
  };
}

/** Panels from left to right, and on to the next row when one is full. */
function placed(panels) {
  let x = 0, y = 0, high = 0;
  return panels.map(({ w, h, ...panel }, n) => {
    if (x + w > 24) [x, y, high] = [0, y + high, 0];
    const gridPos = { x, y, w, h };
    [x, high] = [x + w, Math.max(high, h)];
    return { id: n + 1, gridPos, ...panel };
  });
}

const query = (name, label, expr) => ({
  name, label, type: 'query', datasource, query: { query: expr, refId: name }, refresh: 2, sort: 1,
  multi: true, includeAll: true, hide: 0, regex: '', skipUrlSync: false, options: [],
  current: { text: ['All'], value: ['$__all'] },
});

function dashboard(name, title, description, panels) {
  return {
    uid: `tonk-relay-${name}`, title: `tonk-relay / ${title}`, description, tags: ['tonk-relay'],
    // Of Grafana 12.4. Grafana 11 reads it too: nothing here came after its own.
    schemaVersion: 42, version: 1, editable: true, graphTooltip: 1, fiscalYearStartMonth: 0, liveNow: false,
    weekStart: '', timezone: 'browser', time: { from: 'now-3h', to: 'now' }, refresh: '30s', timepicker: {},
    links: [{
      title: 'tonk-relay', type: 'dashboards', tags: ['tonk-relay'], asDropdown: false, icon: 'external link',
      includeVars: true, keepTime: true, targetBlank: false, tooltip: '', url: '',
    }],
    annotations: {
      list: [{
        name: 'Starts of the relay', datasource, enable: true, iconColor: 'blue',
        target: { refId: 'Anno', expr: `changes(${m('tonk_relay_start_timestamp_seconds')}[$__interval]) > 0` },
        titleFormat: '{{instance}} started',
      }],
    },
    templating: {
      list: [
        {
          name: 'datasource', label: 'Data source', type: 'datasource', query: 'prometheus', hide: 0, regex: '',
          multi: false, includeAll: false, refresh: 1, skipUrlSync: false, options: [],
          current: { text: 'default', value: 'default' },
        },
        query('job', 'Job', 'label_values(tonk_relay_build_info, job)'),
        query('instance', 'Instance', 'label_values(tonk_relay_build_info{job=~"$job"}, instance)'),
      ],
    },
    panels: placed(panels),
  };
}

const LATE = steps(ORANGE, 0.5, RED, 1);
const NEAR = steps(ORANGE, 0.7, RED, 0.9);
const READY = [named(1, 'ready', GREEN), named(0, 'not ready', RED)];
const NEVER = [named(0, 'never', 'text')];
const MIN_FREE = by([], m('tonk_relay_limit', 'key="storage.min_free"'));
const FIRING = 'sum(ALERTS{alertname=~"TonkRelay.+", alertstate="firing"}) or vector(0)';

const overview = dashboard('overview', 'Overview', 'The state of a relay. Start here.', [
  stat('Ready', 'Whether /readyz is 200. Anything but "ready" for more than a minute is bad.',
    'none', [[m('tonk_relay_ready'), '{{instance}}']],
    { thresholds: falling(1, 1), mappings: READY, graph: false }),
  stat('Alerts firing', 'Firing alerts of tonk-relay.rules.yml, for all relays. 0 is good.', 'none',
    [[FIRING, 'alerts']], { thresholds: steps(RED, 1) }),
  stat('Connections', 'Open WebSocket connections. A drop to near 0 on a busy relay is bad: check the proxy in '
    + 'front of it.',
    'short', [[m('tonk_relay_connections'), '{{instance}}']], { decimals: 0 }),
  stat('Documents in memory', 'Live documents: those with sessions, and those that lost their last session less than '
    + 'sync.idle_unload ago.',
    'short', [[orZero(by([], m('tonk_relay_rooms', 'state="live"'))), '{{instance}}']], { decimals: 0 }),
  stat('Message time, p99', '99 of 100 sync messages were applied and answered within this time. Good: below 0.5 s.',
    's', [[quantile(0.99, 'tonk_relay_message_seconds'), '{{instance}}']], { thresholds: LATE }),
  stat('Last backup', 'Time since the last complete backup. With nightly backups, more than two days is bad.',
    's', [[age('tonk_relay_backup_timestamp_seconds'), '{{instance}}']],
    { thresholds: steps(ORANGE, 93_600, RED, 172_800), mappings: NEVER, graph: false }),
  lines('Connections', 'Open WebSocket connections. At the limit, further ones are closed with 1013.', 'short', [
    [m('tonk_relay_connections'), '{{instance}}'],
    [limit('limits.connections'), 'limit (limits.connections)'],
  ]),
  lines('New changes', 'Changes applied to documents per second: what users type. Compare it with its usual '
    + 'value.',
    'cps', [[by([], rate('tonk_relay_changes_applied_total')), '{{instance}}']]),
  lines('Message time', 'From the arrival of a sync message until it is applied and the answers are queued. '
    + 'Good: p99 below 0.5 s. If only p99 rises, it is a large document (tonk-relay top); if both rise, the machine '
    + 'is overloaded.', 's', [
    [quantile(0.99, 'tonk_relay_message_seconds'), '{{instance}} p99'],
    [quantile(0.5, 'tonk_relay_message_seconds'), '{{instance}} p50'],
  ], { thresholds: LATE }),
  lines('CPU cores', 'CPU cores that the process uses. One document uses at most one core.', 'short',
    [[by([], rate('process_cpu_seconds_total')), '{{instance}}']]),
  lines('Memory', 'Resident memory. At the limit, no further document is loaded, and sessions that request one '
    + 'are closed with 1013.', 'bytes', [
    [m('process_resident_memory_bytes'), '{{instance}}'],
    [limit('sync.memory'), 'limit (sync.memory)'],
  ]),
  lines('Changes that are not durable yet', 'Good: near 0. It grows while the disk is slow, full or failing. At the '
    + 'limit, sessions that write are closed.', 'bytes', [
    [m('tonk_relay_storage_unsaved_bytes'), '{{instance}}'],
    [limit('storage.max_unsaved'), 'limit (storage.max_unsaved)'],
  ]),
  lines('Failed checks', 'Good: none. "auth" means that the relay is open to everybody. tonk-relay status shows the '
    + 'reason for each.', 'none', [
    [orZero(by(['check'], m('tonk_relay_not_ready'))), '{{instance}} not ready: {{check}}'],
    [orZero(by(['check'], m('tonk_relay_degraded'))), '{{instance}} degraded: {{check}}'],
  ], { w: 12 }),
  lines('Connections refused', 'By reason. "connections", "memory" and "unsaved": the relay lacks a resource. '
    + '"dead": clients that disappeared without closing. Others: errors of clients.', 'cps',
    [[counts('tonk_relay_refused_total', 'reason'), '{{instance}} {{reason}}']], { w: 12 }),
]);

const sync = dashboard('sync', 'Sync', 'Sessions, documents in memory, and the messages between them.', [
  lines('Messages received', 'Protocol messages from clients, by type. Many "request" and few "sync": clients '
    + 'request documents that nobody has.', 'cps',
    [[by(['type'], rate('tonk_relay_messages_total', 'direction="in"')), '{{instance}} {{type}}']]),
  lines('Messages sent', 'Protocol messages to clients, by type.', 'cps',
    [[by(['type'], rate('tonk_relay_messages_total', 'direction="out"')), '{{instance}} {{type}}']]),
  lines('Bytes', 'Bytes of protocol messages, without TLS. Every message in goes out to all other clients of the document.', 'Bps',
    [[by(['direction'], rate('tonk_relay_message_bytes_total')), '{{instance}} {{direction}}']]),
  lines('Message time', 'From the arrival of a sync message until it is applied and the answers are queued. '
    + 'Good: p99 below 0.5 s.', 's', [
    [quantile(0.99, 'tonk_relay_message_seconds'), '{{instance}} p99'],
    [quantile(0.9, 'tonk_relay_message_seconds'), '{{instance}} p90'],
    [quantile(0.5, 'tonk_relay_message_seconds'), '{{instance}} p50'],
  ], { thresholds: LATE }),
  heatmap('Message time, all', 'The same as a distribution. A second band far above the first is one slow '
    + 'document.', 's',
    `sum by (le) (${rate('tonk_relay_message_seconds_bucket')})`),
  lines('Worker threads occupied', 'How long a task occupies an async worker thread each time it runs. Good: p99 below '
    + '1 ms. Above 50 ms all clients wait.', 's', [
    [quantile(0.99, 'tonk_relay_poll_seconds'), '{{instance}} p99'],
    [quantile(0.9999, 'tonk_relay_poll_seconds'), '{{instance}} p99.99'],
  ]),
  lines('Time to join a document', 'From a session\'s first message about a document until it has joined the room, '
    + 'and until it was sent the relay\'s changes. Good: p99 below 1 s; large documents take as long as sending '
    + 'them takes.', 's', [
    [quantile(0.99, 'tonk_relay_room_join_seconds'), '{{instance}} joined, p99'],
    [quantile(0.99, 'tonk_relay_room_first_sync_seconds'), '{{instance}} sent, p99'],
  ]),
  lines('Documents in memory', 'Live documents, documents being opened, and unknown ones that sessions have requested. '
    + 'Good: few are opening.', 'short', [
    [orZero(by(['state'], m('tonk_relay_rooms'))), '{{instance}} {{state}}'],
    [m('tonk_relay_rooms_waiting'), '{{instance}} requested'],
  ]),
  lines('Documents that left memory', 'By reason. "idle" is normal. "memory" means that sync.memory is too small.',
    'cps', [[counts('tonk_relay_rooms_unloaded_total', 'reason'), '{{instance}} {{reason}}']]),
  lines('Unknown documents', 'Requests for documents that the relay does not have: forwarded to other clients, '
    + 'found there, or unavailable. Many unavailable ones: clients have ids from another relay.', 'cps',
    [[counts('tonk_relay_unknown_requests_total', 'outcome'), '{{instance}} {{outcome}}']]),
  lines('Queued bytes', 'Good: near 0. To be sent: clients read slowly. Received: documents are busy. At the limit, '
    + 'reads from sockets pause.', 'bytes', [
    [m('tonk_relay_unsent_bytes'), '{{instance}} to be sent'],
    [m('tonk_relay_received_queue_bytes'), '{{instance}} received'],
    [limit('sync.receive_queue'), 'limit of received (sync.receive_queue)'],
  ]),
  lines('Connections that ended', 'By outcome. "peer" and "left" are normal, "drain" is a restart, and "dead" are '
    + 'peers that do not answer pings.', 'cps',
    [[counts('tonk_relay_connections_ended_total', 'outcome'), '{{instance}} {{outcome}}']]),
  lines('Messages dropped, presence forwarded', 'Dropped messages by reason, and presence counted for each '
    + 'receiver. Presence dropped for a slow reader is harmless. Refused: documents for which a client sent changes '
    + 'that would damage them.', 'cps', [
    [counts('tonk_relay_messages_dropped_total', 'reason'), '{{instance}} dropped {{reason}}'],
    [counts('tonk_relay_documents_refused_total', 'reason'), '{{instance}} refused {{reason}}'],
    [by([], rate('tonk_relay_ephemera_forwarded_total')), '{{instance}} presence'],
  ]),
  lines('Probe', 'The relay connects to itself as a client does, and requests a document. Good: a few ms, and no '
    + 'failures. It includes everything but disk and network.', 's', [
    [m('tonk_relay_probe_seconds'), '{{instance}} seconds'],
    [`increase(${m('tonk_relay_probe_failures_total')}[$__rate_interval])`, '{{instance}} failures'],
  ], { w: 12 }),
  lines('Panics', 'Good: 0. Each affected one document or one connection, and is a bug in the relay. The log has the '
    + 'details.', 'none', [
    [`increase(${m('tonk_relay_room_panics_total')}[$__rate_interval])`, '{{instance}} rooms'],
    [`increase(${m('tonk_relay_session_panics_total')}[$__rate_interval])`, '{{instance}} sessions'],
  ], { w: 12 }),
]);

const storage = dashboard('storage-and-bundles', 'Storage and bundles', 'The disk, the journal, backups and '
  + 'bundles.', [
  stat('Free', 'Free space on the disk of documents or of bundles, whichever has less, as a multiple of '
    + 'storage.min_free. Below 1, new documents are refused. It means nothing if min_free is only a few bytes.', 'none',
    [[`${m('tonk_relay_storage_free_bytes')} / on (instance) ${MIN_FREE}`, '{{instance}}']],
    { thresholds: falling(1, 2), decimals: 1, w: 6 }),
  stat('In quarantine', 'Chunks that do not parse and were moved to quarantine. Good: 0. See tonk-relay quarantine list.',
    'short', [[m('tonk_relay_quarantined_chunks'), '{{instance}}']], { thresholds: steps(ORANGE, 1), w: 6 }),
  stat('Blocked documents', 'Documents that an operator has blocked (tonk-relay doc block).',
    'short', [[m('tonk_relay_blocked_documents'), '{{instance}}']], { thresholds: steps(ORANGE, 1), w: 6 }),
  stat('Last backup', 'Time since the last complete backup. With nightly backups, more than two days is bad.', 's',
    [[age('tonk_relay_backup_timestamp_seconds'), '{{instance}}']],
    { thresholds: steps(ORANGE, 93_600, RED, 172_800), mappings: NEVER, graph: false, w: 6 }),
  lines('Storage time, p99', 'By operation. Good: below 0.1 s for "put". If all operations are slower, the disk '
    + 'is slow or shared.',
    's', [[quantile(0.99, 'tonk_relay_storage_seconds', ['operation']), '{{instance}} {{operation}}']]),
  lines('Storage operations', 'By operation.', 'ops',
    [[by(['operation'], rate('tonk_relay_storage_seconds_count')), '{{instance}} {{operation}}']]),
  lines('Storage failures', 'Good: 0. Failures by operation, and retries of writes, which continue until they '
    + 'succeed.',
    'ops', [
    [counts('tonk_relay_storage_failures_total', 'operation'), '{{instance}} {{operation}}'],
    [by([], rate('tonk_relay_storage_retries_total')), '{{instance}} retries'],
  ]),
  lines('Changes that are not durable yet', 'Good: near 0. At the limit, sessions that write are closed with 1013.', 'bytes', [
    [m('tonk_relay_storage_unsaved_bytes'), '{{instance}}'],
    [limit('storage.max_unsaved'), 'limit (storage.max_unsaved)'],
  ]),
  lines('Journal', 'Chunks that are not checkpointed into the folders yet. Good: below the limit, and near 0 when '
    + 'nobody edits.',
    'bytes', [
    [m('tonk_relay_storage_journal_bytes'), '{{instance}}'],
    [limit('storage.journal_size'), 'limit (storage.journal_size)'],
  ]),
  lines('Commits and checkpoints', 'Commits of the journal, at most one in each storage.commit_interval, and chunks '
    + 'that were checkpointed into the folders.', 'ops', [
    [by([], rate('tonk_relay_storage_commits_total')), '{{instance}} commits'],
    [by([], rate('tonk_relay_storage_moved_chunks_total')), '{{instance}} checkpointed chunks'],
  ]),
  lines('Free disk', 'Free space on the disk of documents or of bundles, whichever has less. Below the limit, new documents '
    + 'are refused.',
    'bytes', [
    [m('tonk_relay_storage_free_bytes'), '{{instance}}'],
    [limit('storage.min_free'), 'limit (storage.min_free)'],
  ]),
  lines('Broken and unrelated', 'Good: 0. Chunks that do not parse, and documents of the served bundle that have '
    + 'the id of a stored document with another history.', 'none', [
    [m('tonk_relay_storage_broken_chunks_total'), '{{instance}} broken chunks'],
    [m('tonk_relay_storage_unrelated_snapshots_total'), '{{instance}} unrelated snapshots'],
  ]),
  lines('Uploaded bundles', 'Uploads, imports and downloads by result. Bad: "store_failed", "failed", "broken", '
    + '"no_space".',
    'cps', [
    [counts('tonk_relay_bundle_uploads_total', 'result'), '{{instance}} upload {{result}}'],
    [counts('tonk_relay_bundle_imports_total', 'result'), '{{instance}} import {{result}}'],
    [counts('tonk_relay_bundle_downloads_total', 'result'), '{{instance}} download {{result}}'],
  ]),
  lines('Loads of the served bundle', 'How often the file was loaded since the start. If "failed" grows, the file '
    + 'is broken, and the last good one is still served.', 'none', [
    [orZero(by(['result'], m('tonk_relay_bundle_loads_total'))), '{{instance}} {{result}}'],
  ], { w: 24, h: 6 }),
]);

const fleet = dashboard('fleet', 'Fleet', 'All relays side by side. Needs the recording rules of '
  + 'tonk-relay.rules.yml.', [
  table('Relays', 'One row for each relay that Prometheus reaches. For the others see "Targets that are down".', [
    [`sum by (instance, version) (${m('tonk_relay_build_info')})`, 'up', 'none', { mappings: [named(1, 'up', GREEN)] }],
    [by([], m('tonk_relay_ready')), 'ready', 'none', { thresholds: falling(1, 1), mappings: READY }],
    [by([], m('tonk_relay_connections')), 'connections', 'short'],
    [by([], m('instance:tonk_relay_changes_applied:rate5m')), 'changes', 'cps'],
    [by([], m('instance:tonk_relay_message_seconds:p99_5m')), 'message p99', 's', { thresholds: LATE }],
    [by([], rate('process_cpu_seconds_total')), 'cores', 'short'],
    [by([], m('instance:tonk_relay_memory_used:ratio')), 'memory', 'percentunit', { thresholds: NEAR }],
    [by([], m('tonk_relay_storage_free_bytes')), 'free disk', 'bytes'],
    [by([], age('tonk_relay_backup_timestamp_seconds')), 'last backup', 's', { mappings: NEVER }],
    [by([], `time() - ${m('tonk_relay_start_timestamp_seconds')}`), 'uptime', 's'],
  ]),
  lines('Connections', 'Stacked by relay. If one falls while the others rise, clients are moving.',
    'short', [[m('tonk_relay_connections'), '{{instance}}']], { stack: true }),
  lines('New changes', 'Stacked by relay, over 5 minutes.', 'cps',
    [[m('instance:tonk_relay_changes_applied:rate5m'), '{{instance}}']], { stack: true }),
  lines('Message time, p99', 'Over 5 minutes. Good: below 0.5 s, and similar on all relays.', 's',
    [[m('instance:tonk_relay_message_seconds:p99_5m'), '{{instance}}']], { thresholds: LATE }),
  lines('Connections, of the limit', 'Share of limits.connections. Bad: above 90%.', 'percentunit',
    [[m('instance:tonk_relay_connections_used:ratio'), '{{instance}}']], { thresholds: NEAR }),
  lines('Memory, of the limit', 'Share of sync.memory. Bad: above 90%.', 'percentunit',
    [[m('instance:tonk_relay_memory_used:ratio'), '{{instance}}']], { thresholds: NEAR }),
  lines('Open files, of the limit', 'Share of the process\'s limit of open files. Bad: above 90%.', 'percentunit',
    [[m('instance:tonk_relay_open_files_used:ratio'), '{{instance}}']], { thresholds: NEAR }),
  lines('Not durable, of the limit', 'Share of storage.max_unsaved. Good: near 0. Bad: above 50%.', 'percentunit',
    [[m('instance:tonk_relay_unsaved_used:ratio'), '{{instance}}']], { thresholds: steps(RED, 0.5) }),
  lines('Refused', 'Connections refused or closed because of something a client did, for all reasons, over 5 minutes.', 'cps',
    [[by([], m('instance:tonk_relay_refused:rate5m')), '{{instance}}']]),
  lines('Starts in the last hour', 'Good: 0, and 1 or 2 after an upgrade.', 'none',
    [[`changes(${m('tonk_relay_start_timestamp_seconds')}[1h])`, '{{instance}}']]),
  lines('Versions', 'How many relays run each version. More than one line for a long time is an unfinished '
    + 'upgrade.', 'none',
    [[`count by (version) (${m('tonk_relay_build_info')})`, '{{version}}']]),
  lines('Served bundles', 'How many relays serve each bundle, by the SHA-256 of its file. If all should serve the '
    + 'same one, more than one line for a long time is an unfinished roll-out.', 'none',
    [[`count by (sha256) (${m('tonk_relay_bundle_info')}) or vector(0)`, '{{sha256}}']]),
  lines('Targets that are down', 'Good: 0. Relays that do not answer Prometheus.', 'none',
    [['count by (job) (up{job=~"$job"} == 0) or 0 * count by (job) (up{job=~"$job"})', '{{job}}']]),
]);

/** Copies of a document in memory, over those that were changed: of each commit, how many relays had the document. */
const COPIES = `1 + sum(${rate('tonk_relay_cluster_live_rows_total')}) / sum(${rate('tonk_relay_database_chunks_total')})`;
/** Without an event a quantile is not a number: 0 then. */
const since = (q, name) => orZero(`${quantile(q, name)} >= 0`);

const cluster = dashboard('cluster', 'Several relays', 'Relays that share a PostgreSQL database.', [
  table('Relays', 'One row for each relay that Prometheus reaches. All should see as many relays as there are.', [
    [`sum by (instance, version) (${m('tonk_relay_build_info')})`, 'up', 'none', { mappings: [named(1, 'up', GREEN)] }],
    [by([], m('tonk_relay_ready')), 'ready', 'none', { thresholds: falling(1, 1), mappings: READY }],
    [by([], m('tonk_relay_database_away')), 'database', 'none',
      { thresholds: steps(RED, 1), mappings: [named(0, 'connected', GREEN), named(1, 'away', RED)] }],
    [by([], m('tonk_relay_cluster_relays')), 'relays seen', 'none'],
    [by([], m('tonk_relay_connections')), 'connections', 'short'],
    [by([], m('tonk_relay_rooms', 'state="live"')), 'live documents', 'short'],
  ], { h: 7 }),
  lines('News of other relays', 'From the commit of another relay until its chunks reach the rooms here. Good: below '
    + '0.1 s. Up to a second where a hint was lost.', 's', [
    [since(0.5, 'tonk_relay_cluster_news_seconds'), '{{instance}} p50'],
    [since(0.99, 'tonk_relay_cluster_news_seconds'), '{{instance}} p99'],
  ], { thresholds: steps(RED, 2) }),
  lines('Copies a document', 'How many relays have a document in memory, of those that are changed. Good: near 1. Each '
    + 'further one costs a look at every change; the placement hint avoids them.', 'none', [[`${COPIES} >= 0 or vector(0)`, 'copies']]),
  lines('Time until a commit is durable', 'How long a change waits for the database. Bad: seconds.', 's', [
    [quantile(0.5, 'tonk_relay_storage_seconds', ['operation']), '{{instance}} {{operation}} p50'],
    [quantile(0.99, 'tonk_relay_storage_seconds', ['operation']), '{{instance}} {{operation}} p99'],
  ], { thresholds: steps(RED, 5) }),
  lines('Commits, and chunks in them', 'A commit has the changes of all documents of one storage.commit_interval.', 'ops', [
    [by([], rate('tonk_relay_storage_commits_total')), '{{instance}} commits'],
    [by([], rate('tonk_relay_database_chunks_total')), '{{instance}} chunks'],
  ]),
  lines('Hints', 'Good: none is lost. The changes of a lost one are found by the poll, up to a second later.', 'cps',
    [[counts('tonk_relay_cluster_hints_total', 'event'), '{{instance}} {{event}}']]),
  lines('Looks, and rows that they find', 'Looks at what others have written, after a hint or by the poll.', 'ops', [
    [counts('tonk_relay_cluster_looks_total', 'cause'), '{{instance}} looks by {{cause}}'],
    [counts('tonk_relay_cluster_rows_total', 'cause'), '{{instance}} rows by {{cause}}'],
  ]),
  lines('Presence and requests between relays', 'Dropped: more than fits into a notification every 20 ms.', 'cps',
    [[counts('tonk_relay_cluster_messages_total', 'event'), '{{instance}} {{event}}']]),
  lines('Connected again, losses, and everything read again', 'In the last hour. Good: 0, and a few after a restart of the '
    + 'database.', 'none', [
    [`increase(${m('tonk_relay_database_reconnects_total')}[1h])`, '{{instance}} connected again'],
    [`increase(${m('tonk_relay_database_losses_total')}[1h])`, '{{instance}} losses'],
    [`increase(${m('tonk_relay_cluster_resyncs_total')}[1h])`, '{{instance}} everything read again'],
  ]),
  lines('Oldest transaction', 'Of those that have written something, on the whole server. Bad: an hour.', 's',
    [[`max(${m('tonk_relay_database_oldest_transaction_seconds')})`, 'oldest transaction']], { thresholds: steps(RED, 3600) }),
  lines('Queue of notifications', 'Share of the server\'s queue that is full. Bad: anything that grows; look for a '
    + 'session that listens inside of a transaction.', 'percentunit',
    [[m('tonk_relay_cluster_notification_queue_ratio'), '{{instance}}']], { thresholds: NEAR }),
  lines('Versions and bundles', 'How many relays have each version, and serve each bundle. More than one of either for a long '
    + 'time is an unfinished roll-out.', 'none', [
    [`count by (version) (${m('tonk_relay_build_info')})`, 'version {{version}}'],
    [`count by (sha256) (${m('tonk_relay_bundle_info')}) or vector(0)`, 'bundle {{sha256}}'],
  ]),
]);

export const dashboards = { overview, sync, 'storage-and-bundles': storage, fleet, cluster };

/** Write all of them into a folder. */
export async function write(at) {
  await mkdir(at, { recursive: true });
  for (const [name, of] of Object.entries(dashboards)) {
    await writeFile(join(at, `${name}.json`), `${JSON.stringify(of, undefined, 2)}\n`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await write(process.argv[2] ?? fileURLToPath(new URL('.', import.meta.url)));
}
