/**
 * What the panel reads of a gateway for rows that are open: what is saved of a session, the series
 * of checkpoints, the steps of one.
 *
 *   rows ── get(key, version) ──► what was read, or null; read again where the version is another
 *
 * One request for each key at a time, and the next one not sooner than its pause: what is read
 * changes with every cell that ends, and a store takes its time to be listed.
 */

import { short } from '../dom';

interface IEntry<T> {
  version: string;
  value: T | null;
  problem: string;
  at: number;
  reading: boolean;
  again?: ReturnType<typeof setTimeout>;
}

export interface IRead<T> {
  /** Null: not read yet. */
  value: T | null;
  problem: string;
}

export class Reading<T> {
  constructor(
    private _changed: () => void,
    private _pause_ms = 0
  ) {}

  get(key: string, version: string, read: () => Promise<T>): IRead<T> {
    let entry = this._entries.get(key);
    if (!entry) {
      entry = { version: '\0', value: null, problem: '', at: -Infinity, reading: false };
      this._entries.set(key, entry);
    }
    if (entry.version !== version && !entry.reading && entry.again === undefined) {
      const wait = entry.at + this._pause_ms - performance.now();
      if (wait > 0) {
        const late = entry;
        // Asked for again by whoever draws, if it is still of interest then.
        entry.again = setTimeout(() => {
          delete late.again;
          this._changed();
        }, wait);
      } else {
        void this._read(entry, version, read);
      }
    }
    return entry;
  }

  private async _read(
    entry: IEntry<T>,
    version: string,
    read: () => Promise<T>
  ): Promise<void> {
    entry.version = version;
    entry.reading = true;
    try {
      entry.value = await read();
      entry.problem = '';
    } catch (error) {
      entry.problem = short((error as Error).message);
    }
    entry.reading = false;
    entry.at = performance.now();
    this._changed();
  }

  private _entries = new Map<string, IEntry<T>>();
}
