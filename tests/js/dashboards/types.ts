// Checks the JSON of a dashboard against Grafana's own types; the test appends the dashboards.
import type {
  AnnotationQuery, Dashboard, DataQuery, DataSourceRef, FieldConfig, FieldConfigSource, GraphFieldConfig, Panel,
  TableFieldOptions,
} from '@grafana/schema';
import type { Options as Stat } from
  '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type { Options as Table } from
  '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { Options as Series } from
  '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type { FieldConfig as HeatField, Options as Heat } from
  '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';

/** A type as it is in JSON, with the values of an enum instead of its names. */
type Plain<T> = T extends string ? `${T}` : T extends number ? T | NumberOf<T>
  : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type NumberOf<T extends number> = `${T}` extends `${infer N extends number}` ? N : never;

/** The fields that Grafana's Prometheus data source reads, for which this package has no type. */
type Target = DataQuery & { datasource: DataSourceRef; expr: string; legendFormat: string; editorMode: 'code' }
  & ({ range: true; format?: 'heatmap' } | { range: false; instant: true; format: 'table' });
type Note = AnnotationQuery<DataQuery & { expr: string }> & { titleFormat: string };
type Of<Type extends string, Options, Custom = Record<string, never>> =
  Omit<Panel, 'type' | 'options' | 'fieldConfig' | 'targets' | 'title' | 'description' | 'gridPos'>
  & Required<Pick<Panel, 'title' | 'description' | 'gridPos'>>
  & { type: Type; options: Options; targets: Target[] }
  & { fieldConfig: Omit<FieldConfigSource, 'defaults'> & { defaults: Fields<Custom> } };
type Fields<Custom> = Omit<FieldConfig, 'custom'> & { custom?: Custom };
type AnyPanel = Of<'stat', Stat> | Of<'table', Table, Partial<TableFieldOptions>>
  | Of<'timeseries', Series, GraphFieldConfig> | Of<'heatmap', Heat, HeatField>;

export type Checked = Plain<
  Omit<Dashboard, 'panels' | 'annotations'> & { panels: AnyPanel[]; annotations: { list: Note[] } }
>;
