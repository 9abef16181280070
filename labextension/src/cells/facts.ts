/**
 * What is known of a cell that ran remotely: which execution it was, where, and what it cost. Kept in
 * the cell's metadata under `mlcloud`, so that a saved notebook tells its own cost.
 *
 * While a cell runs its facts are also in this browser's storage: what was not saved is lost when the
 * page is loaded again, and that is when they are needed.
 */

import type { ICellModel } from '@jupyterlab/cells';
import { PageConfig } from '@jupyterlab/coreutils';

export const KEY = 'mlcloud';

export interface IFacts {
  execution_id: string;
  session: string;
  /** Of which cluster; none: the embedded one. */
  cluster?: string;
  state?: 'running' | 'ok' | 'error' | 'aborted';
  seconds?: number;
  /** A decimal: JSON's numbers are no money. */
  usd?: string;
  saved_usd?: string;
  instance_type?: string | null;
  market?: string | null;
  zone?: string | null;
  moves?: number;
  simulated?: boolean;
}

const KEPT = [
  ...(['execution_id', 'session', 'cluster', 'state', 'seconds', 'usd', 'saved_usd'] as const),
  ...(['instance_type', 'market', 'zone', 'moves', 'simulated'] as const)
];

/** The facts of a cell; null where it did not run remotely. */
export function factsOf(model: ICellModel): IFacts | null {
  const found = model.getMetadata(KEY) as Partial<IFacts> | undefined;
  return found && typeof found.execution_id === 'string' ? (found as IFacts) : null;
}

/** Facts in a message's metadata; null where there are none. */
export function factsIn(metadata: unknown): IFacts | null {
  const found = (metadata as Record<string, unknown> | undefined)?.[KEY] as IFacts | undefined;
  if (!found || typeof found.execution_id !== 'string' || typeof found.session !== 'string') {
    return null;
  }
  return found.state !== undefined || found.usd !== undefined ? found : null;
}

/** Keep them in the cell; those of a bill that is shown again replace the ones before. */
export function keep(model: ICellModel, facts: IFacts): void {
  const before = factsOf(model);
  const same = before?.execution_id === facts.execution_id;
  const merged: Record<string, unknown> = same ? { ...before } : {};
  for (const key of KEPT) {
    if (facts[key] !== undefined && facts[key] !== null) {
      merged[key] = facts[key];
    }
  }
  if (facts.state === undefined && merged['state'] === 'running') {
    delete merged['state'];
  }
  if (JSON.stringify(merged) !== JSON.stringify(before)) {
    model.setMetadata(KEY, merged as never);
  }
}

/** Executions of a notebook whose ends this browser has not seen, by their cells' ids. */
export class Running {
  constructor(path: string) {
    this._key = `mlcloud:running:${PageConfig.getBaseUrl()}:${path}`;
  }

  get all(): Record<string, IFacts> {
    try {
      return JSON.parse(localStorage.getItem(this._key) ?? '{}') as Record<string, IFacts>;
    } catch {
      return {};
    }
  }

  begin(cellId: string, facts: IFacts): void {
    this._write({ ...this.all, [cellId]: facts });
  }

  end(cellId: string): void {
    const all = this.all;
    if (cellId in all) {
      delete all[cellId];
      this._write(all);
    }
  }

  private _write(all: Record<string, IFacts>): void {
    try {
      if (Object.keys(all).length) {
        localStorage.setItem(this._key, JSON.stringify(all));
      } else {
        localStorage.removeItem(this._key);
      }
    } catch {
      // No storage here: only what was saved is found again.
    }
  }

  private readonly _key: string;
}
