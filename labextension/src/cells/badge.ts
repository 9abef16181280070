/** A small word on each cell that ran remotely: where, how long, for how much. */

import type { Cell, ICellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { IDisposable } from '@lumino/disposable';

import { factsOf } from './facts';
import { cloudIcon } from './icons';
import { brief, long } from './words';

const CLASS = 'mlcloud-Badge';
const SHORT = 'mlcloud-mod-short';

/** The badges of one notebook. */
export class Badges implements IDisposable {
  constructor(private readonly _panel: NotebookPanel) {
    const cells = _panel.content.model?.cells;
    cells?.changed.connect(this._all, this);
    _panel.content.modelContentChanged?.connect(this._all, this);
    _panel.disposed.connect(() => this.dispose());
    this._all();
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    this._disposed = true;
    this._panel.content.model?.cells.changed.disconnect(this._all, this);
  }

  private _all(): void {
    if (this._panel.isDisposed) {
      return;
    }
    for (const cell of this._panel.content.widgets) {
      if (cell.model?.type === 'code' && !this._known.has(cell)) {
        this._known.add(cell);
        cell.model.metadataChanged.connect(() => void this._draw(cell));
        cell.model.contentChanged.connect(() => this._place(cell));
        void this._draw(cell);
      }
    }
  }

  private async _draw(cell: Cell<ICellModel>): Promise<void> {
    await cell.ready;
    if (cell.isDisposed || !cell.inputArea) {
      return;
    }
    const facts = factsOf(cell.model);
    const place = cell.inputArea.node;
    let badge = place.querySelector<HTMLElement>(`:scope > .${CLASS}`);
    if (!facts) {
      badge?.remove();
      return;
    }
    if (!badge) {
      badge = document.createElement('div');
      badge.className = CLASS;
      cloudIcon.element({ container: badge, height: '12px', width: '12px', tag: 'span' });
      badge.append(document.createElement('span'));
      place.append(badge);
    }
    const text = badge.lastElementChild as HTMLElement;
    text.textContent = brief(facts);
    badge.title = long(facts);
    badge.dataset['state'] = facts.state ?? 'ok';
    this._place(cell);
  }

  /** On a cell of one line, the cell's own toolbar has its place while the cell is active. */
  private _place(cell: Cell<ICellModel>): void {
    const badge = cell.inputArea?.node.querySelector<HTMLElement>(`:scope > .${CLASS}`);
    badge?.classList.toggle(SHORT, !cell.model.sharedModel.getSource().trim().includes('\n'));
  }

  private readonly _known = new WeakSet<Cell<ICellModel>>();
  private _disposed = false;
}
