/**
 * The clusters as they are now: one WebSocket, from which every part of the page reads.
 *
 *   server ══ {clusters} {cluster, set, gone} ══► Clusters ──► changed ──► panel, status bar, toasts
 *
 * Changes are told once a frame of the screen, however many arrive in it. A socket that is lost is
 * opened again after 1 s, 2 s … 15 s, and begins with everything.
 */

import { Token } from '@lumino/coreutils';
import type { IDisposable } from '@lumino/disposable';
import { Signal } from '@lumino/signaling';
import type { ISignal } from '@lumino/signaling';

import type { Server } from './server';
import type { Frame, IBudget, ICluster, IJob, IKnown, INode, ISession } from './wire';

/** For other plugins: `const clusters = app.resolve(IClusters)`, or as `requires`. */
export const IClusters = new Token<Clusters>(
  'mlcloud:IClusters',
  'The clusters of mlcloud that the Jupyter server knows, live.'
);

const PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;

/** The items of one cluster by kind. */
export class Items {
  info: ICluster | null = null;
  readonly sessions = new Map<string, ISession>();
  readonly nodes = new Map<string, INode>();
  readonly budgets = new Map<string, IBudget>();
  /** Null: the gateway has no jobs. */
  jobs: Map<string, IJob> | null = null;

  /** Take what a frame says; a key is `session/exp`, `node/i-1`, `budget/`, `job/j-1`, `info`. */
  take(set: Record<string, unknown>, gone: string[]): void {
    for (const [key, value] of Object.entries(set)) {
      const [kind, name] = split(key);
      if (kind === 'info') {
        this.info = value as ICluster;
      } else if (kind === 'jobs') {
        this.jobs = value ? (this.jobs ?? new Map()) : null;
      } else {
        this._of(kind)?.set(name, value);
      }
    }
    for (const key of gone) {
      const [kind, name] = split(key);
      if (kind === 'info') {
        this.info = null;
      } else {
        this._of(kind)?.delete(name);
      }
    }
  }

  private _of(kind: string): Map<string, unknown> | null {
    switch (kind) {
      case 'session':
        return this.sessions as Map<string, unknown>;
      case 'node':
        return this.nodes as Map<string, unknown>;
      case 'budget':
        return this.budgets as Map<string, unknown>;
      case 'job':
        return (this.jobs ??= new Map()) as Map<string, unknown>;
      default: // of a newer gateway
        return null;
    }
  }
}

export class Clusters implements IDisposable {
  /** `null` until the server has said which there are. */
  known: IKnown[] | null = null;
  readonly items = new Map<string, Items>();
  /** Whether the socket is open. */
  connected = false;

  constructor(readonly server: Server) {}

  /** Something is different; told once a frame. */
  get changed(): ISignal<Clusters, void> {
    return this._changed;
  }

  /** Each frame of the socket, before it is taken: what was is still to be seen. */
  get arriving(): ISignal<Clusters, Frame> {
    return this._arriving;
  }

  /** Begin; again is nothing. */
  open(): void {
    if (this._socket || this.isDisposed) {
      return;
    }
    const socket = (this._socket = this.server.socket('events'));
    socket.onopen = () => {
      this.connected = true;
      this._pause = PAUSE_MS;
      this._tell();
    };
    socket.onmessage = event => this.take(JSON.parse(String(event.data)) as Frame);
    socket.onclose = () => {
      this._socket = null;
      this.connected = false;
      this._tell();
      if (!this.isDisposed) {
        this._timer = setTimeout(() => this.open(), this._pause);
        this._pause = Math.min(2 * this._pause, LONGEST_PAUSE_MS);
      }
    };
  }

  take(frame: Frame): void {
    this._arriving.emit(frame);
    if ('clusters' in frame) {
      this.known = frame.clusters;
      const there = new Set(frame.clusters.map(each => each.name));
      for (const name of [...this.items.keys()].filter(name => !there.has(name))) {
        this.items.delete(name);
      }
    } else {
      const before = this.items.get(frame.cluster);
      const items = before && !frame.whole ? before : new Items();
      items.take(frame.set, frame.gone);
      this.items.set(frame.cluster, items);
    }
    this._tell();
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    this._disposed = true;
    clearTimeout(this._timer);
    this._socket?.close();
    Signal.clearData(this);
  }

  private _tell(): void {
    if (!this._told) {
      this._told = true;
      // A hidden page draws no frames: it is told all the same, later.
      const tell = document.hidden ? (call: () => void) => setTimeout(call, 500) : frame;
      tell(() => {
        this._told = false;
        this._changed.emit();
      });
    }
  }

  private _changed = new Signal<Clusters, void>(this);
  private _arriving = new Signal<Clusters, Frame>(this);
  private _socket: WebSocket | null = null;
  private _pause = PAUSE_MS;
  private _timer: ReturnType<typeof setTimeout> | undefined;
  private _told = false;
  private _disposed = false;
}

function split(key: string): [string, string] {
  const at = key.indexOf('/');
  return at < 0 ? [key, ''] : [key.slice(0, at), key.slice(at + 1)];
}

function frame(call: () => void): void {
  requestAnimationFrame(call);
}
