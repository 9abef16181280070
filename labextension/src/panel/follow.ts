/**
 * A log that is read as it grows: of a session's last cell, or of a job.
 *
 * Read when the events say that there is more (`last_event`, `last_log`), until there is no more.
 */

import type { Clusters } from '../clusters';
import { short } from '../dom';
import type { LogView } from './log';

interface IEvent {
  seq: number;
  execution_id: string;
  kind: string;
  content?: { text?: string };
}

interface IJobLog {
  pieces: { number: number; text: string }[];
}

interface IExecution {
  id: string;
  first_event: number;
}

export class Follower {
  constructor(
    private _clusters: Clusters,
    private _cluster: string,
    private _kind: 'session' | 'job',
    private _name: string,
    private _view: LogView
  ) {
    _clusters.changed.connect(this._look, this);
    this._look();
  }

  dispose(): void {
    this._over = true;
    this._clusters.changed.disconnect(this._look, this);
  }

  /** How far it goes, as the events say. */
  private get _there(): number {
    const items = this._clusters.items.get(this._cluster);
    return this._kind === 'session'
      ? (items?.sessions.get(this._name)?.last_event ?? 0)
      : (items?.jobs?.get(this._name)?.last_log ?? 0);
  }

  private _look(): void {
    if (!this._reading && !this._over && (this._after === null || this._there > this._after)) {
      this._reading = true;
      void this._read().finally(() => {
        this._reading = false;
        if (!this._problem && this._after !== null && this._there > this._after) {
          this._look();
        }
      });
    }
  }

  private async _read(): Promise<void> {
    try {
      if (this._kind === 'session') {
        await this._readSession();
      } else {
        await this._readJob();
      }
      this._problem = false;
    } catch (error) {
      if (!this._problem) {
        this._view.append(`\n[${short((error as Error).message)}; read again when there is more]\n`);
      }
      this._problem = true;
    }
  }

  private async _readSession(): Promise<void> {
    const path = `sessions/${encodeURIComponent(this._name)}`;
    const ask = <T>(rest: string) =>
      this._clusters.server.gateway<T>(this._cluster, 'GET', `${path}/${rest}`);
    if (this._after === null) {
      const cells = await ask<IExecution[]>('executions');
      this._after = cells[cells.length - 1]?.first_event ?? 0;
    }
    for (;;) {
      const events: IEvent[] = await ask(`events?after=${this._after}`);
      if (!events.length || this._over) {
        this._after = Math.max(this._after, this._there);
        return;
      }
      this._after = events[events.length - 1]!.seq;
      this._view.append(
        events
          .filter(each => each.kind === 'stream')
          .map(each => each.content?.text ?? '')
          .join('')
      );
    }
  }

  private async _readJob(): Promise<void> {
    const path = `jobs/${encodeURIComponent(this._name)}/logs`;
    for (;;) {
      const after: number = this._after ?? 0;
      const log = await this._clusters.server.gateway<IJobLog>(
        this._cluster,
        'GET',
        `${path}?after=${after}`
      );
      if (!log.pieces.length || this._over) {
        this._after = Math.max(after, this._there);
        return;
      }
      this._after = log.pieces[log.pieces.length - 1]!.number;
      this._view.append(log.pieces.map(each => each.text).join(''));
    }
  }

  private _after: number | null = null;
  private _reading = false;
  private _problem = false;
  private _over = false;
}
