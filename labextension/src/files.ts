/**
 * The `cluster.yaml` files in the folder of the notebook that is open, or of the root where none is.
 *
 * Read again when another notebook comes to the front, when a file is saved, made, moved or deleted
 * here, when a cluster has come up or gone, and when the panel is shown: nothing is polled.
 */

import { PathExt } from '@jupyterlab/coreutils';
import type { INotebookTracker } from '@jupyterlab/notebook';
import type { Contents } from '@jupyterlab/services';
import { Signal } from '@lumino/signaling';

import type { Clusters } from './clusters';
import type { IFile } from './wire';

const PAUSE_MS = 300; // a save may be told several times

export class Files {
  constructor(
    private _clusters: Clusters,
    private _contents: Contents.IManager,
    private _notebooks: INotebookTracker | null
  ) {
    _notebooks?.currentChanged.connect(this._moved, this);
    _contents.fileChanged.connect(this._later, this);
    _clusters.changed.connect(this._compare, this);
  }

  /** Something is different. */
  readonly changed = new Signal<Files, void>(this);

  /** Null until they are read once. */
  found: IFile[] | null = null;

  /** Somebody looks: read now. Until then, nothing is read. */
  async read(): Promise<void> {
    clearTimeout(this._timer);
    this._wanted = true;
    const folder = (this._folder = this._here());
    const number = ++this._number;
    const query = new URLSearchParams({ folder });
    let found: IFile[];
    try {
      found = await this._clusters.server.request<IFile[]>('GET', `files?${query}`);
    } catch {
      found = []; // the Jupyter server is away, which the panel says already
    }
    if (number === this._number) {
      this.found = found;
      this.changed.emit();
    }
  }

  private _here(): string {
    const path = this._notebooks?.currentWidget?.context.path ?? '';
    return PathExt.dirname(this._contents.localPath(path));
  }

  private _moved(): void {
    if (this._here() !== this._folder) {
      this._later();
    }
  }

  /** What a file would change depends on what runs. */
  private _compare(): void {
    const up = (this._clusters.known ?? []).map(each => `${each.name} ${each.up} ${!each.doing}`);
    if (up.join() !== this._up) {
      this._up = up.join();
      this._later();
    }
  }

  private _later(): void {
    if (this._wanted) {
      clearTimeout(this._timer);
      this._timer = setTimeout(() => void this.read(), PAUSE_MS);
    }
  }

  private _wanted = false;
  private _folder = '';
  private _up = '';
  private _number = 0;
  private _timer: ReturnType<typeof setTimeout> | undefined;
}
