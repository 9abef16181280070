/**
 * What the server's part sends, as the gateway's own models have it (`mlcloud/*models.py`): money is
 * a decimal in a string, times are ISO 8601 with their zone.
 */

export type SessionState =
  'starting' | 'idle' | 'busy' | 'waiting' | 'moving' | 'parked' | 'closed' | 'failed';

export interface ISession {
  id: string;
  name: string;
  state: SessionState;
  gpu: string | null;
  cpus: number;
  memory: string | null;
  market: string;
  node: string | null;
  instance_type: string | null;
  zone: string | null;
  usd_per_hour: string;
  usd: string;
  simulated: boolean;
  running: string | null;
  queued: number;
  last_event: number;
  finished_cells: number;
  safe_cells: number;
  detail: string;
  idle_since: string | null;
}

export interface IGpuLook {
  busy: number;
  memory: number;
  memory_there: number;
}

export interface IUse {
  cpus: number;
  memory: number;
  gpus: IGpuLook[];
}

export interface INode {
  id: string;
  node_type: string;
  instance_type: string;
  zone: string;
  market: string;
  usd_per_hour: string;
  simulated: boolean;
  launched_at: string;
  notice_deadline: string | null;
  sessions: string[];
  jobs?: string[];
  idle_since: string | null;
  reserved: number;
  cpus?: number;
  memory_bytes?: number;
  use?: IUse | null;
}

export interface IBudget {
  session: string | null;
  user?: string | null;
  job?: string | null;
  limit: string;
  limit_usd: string;
  spent_usd: string;
  period: string;
  ends_at: string | null;
  refuses: string;
}

/** The cluster itself; what it has is in items of their own. */
export interface ICluster {
  name: string;
  state: 'starting' | 'running' | 'failed' | 'stopping';
  detail: string;
  cloud: string;
  store: string;
  usd: string;
  usd_today: string;
  usd_per_hour: string;
  standing_usd_per_hour: string;
  simulated: boolean;
}

/** A call that runs detached. A gateway without jobs has none. */
export interface IJob {
  id: string;
  name: string;
  state: string;
  detail: string;
  items: number;
  done: number;
  failed: number;
  running: number;
  workers: number;
  usd: string;
  usd_per_hour: string;
  simulated: boolean;
  last_log: number;
}

export interface IVariable {
  name: string;
  how: string;
  bytes: number | null;
  why: string;
}

/** `GET /v1/sessions/{name}/state`. */
export interface ISavedState {
  step: number;
  safe_to: string;
  unsafe: number;
  bytes: number;
  files: number;
  variables: IVariable[];
}

/** One of `GET /v1/sessions/{name}/history`. */
export interface IBoundary {
  step: number;
  code: string;
  finished_at: string | null;
  restored_from: number | null;
  bytes: number;
}

/** One of the clusters that this server knows, up or not. */
export interface IKnown {
  name: string;
  kind: 'embedded' | 'url' | 'remote' | 'file';
  up: boolean;
  /** Why it cannot be reached, and what to do; empty: there is nothing to say. */
  problem: string;
  /** It comes up or goes down at this moment: what is done; empty: nothing. */
  doing: string;
}

/** One of `GET /v1/checkpoints`. */
export interface ISeries {
  name: string;
  session: string | null;
  job: string | null;
  steps: number;
  newest: number;
  written_at: string;
}

/** One of `GET /v1/checkpoints/steps`. */
export interface IStep {
  step: number;
  bytes: number;
  new_bytes: number;
  created_at: string | null;
  metric: number | null;
  complete: boolean;
  fault: string;
  problem: string;
}

/** A node group of a file, with the offer that would be tried first. */
export interface IFileGroup {
  name: string;
  min: number;
  max: number | null;
  offers: number;
  instance_type: string;
  gpu: string | null;
  market: string;
  zone: string;
  usd_per_hour: string;
  saving: number | null;
}

/** A `cluster.yaml` beside the notebook. Where it has problems, the rest may lack. */
export interface IFile {
  path: string;
  cluster: string;
  cloud: string;
  budget: string[];
  problems: { line: number | null; field: string; text: string }[];
  groups: IFileGroup[];
  notes: string[];
  simulated: boolean;
  /** What differs from the cluster of that name, which runs; null: none does. */
  changes: string[] | null;
}

/** What a frame of `mlcloud/events` is. */
export type Frame =
  | { clusters: IKnown[] }
  | {
      cluster: string;
      /** Everything that is; else what has changed. */
      whole: boolean;
      set: Record<string, unknown>;
      gone: string[];
    };
