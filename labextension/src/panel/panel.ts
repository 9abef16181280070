/**
 * The sidebar: a tree of all clusters, and below it a log where one is shown.
 *
 * It is drawn while it is seen. What nobody may forget, dollars and the state of the line to the
 * server, stands above the tree and does not scroll away.
 */

import type { Message } from '@lumino/messaging';
import { Widget } from '@lumino/widgets';

import type { Actions } from '../actions';
import type { Clusters } from '../clusters';
import { button, h, say, short } from '../dom';
import type { Files } from '../files';
import type { IBoundary, ISavedState, ISession } from '../wire';
import { Follower } from './follow';
import { LogView } from './log';
import { rows } from './rows';
import type { IDetail, IView } from './rows';
import { Tree } from './tree';
import { summary } from '../summary';

export class Panel extends Widget {
  constructor(
    private _clusters: Clusters,
    private _actions: Actions,
    private _files: Files
  ) {
    super();
    this.id = 'mlcloud-panel';
    this.addClass('mlcloud-panel');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'mlcloud');
    this._tree = new Tree('Clusters, nodes, sessions and jobs', (key, open) => {
      this._open.set(key, open);
      this._draw();
    });
    this._sum = h('div', { class: 'mlcloud-sum', 'aria-live': 'off' });
    this._line = h('div', { class: 'mlcloud-note warn', role: 'status', hidden: true });
    this._bottom = h('section', { class: 'mlcloud-bottom', hidden: true });
    this.node.append(this._sum, this._line, this._tree.node, this._bottom);
    _clusters.changed.connect(this._later, this);
    _actions.changed.connect(this._draw, this);
    _files.changed.connect(this._draw, this);
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this._clusters.changed.disconnect(this._later, this);
      this._actions.changed.disconnect(this._draw, this);
      this._files.changed.disconnect(this._draw, this);
      clearInterval(this._ticking);
      this._closeLog();
      this._tree.dispose();
      super.dispose();
    }
  }

  protected override onAfterShow(_: Message): void {
    clearInterval(this._ticking);
    this._ticking = setInterval(() => this._draw(), 1000); // countdowns and idle times
    this._draw();
    void this._files.read();
  }

  protected override onAfterHide(_: Message): void {
    clearInterval(this._ticking);
  }

  protected override onBeforeDetach(_: Message): void {
    clearInterval(this._ticking);
  }

  protected override onActivateRequest(_: Message): void {
    const first = this._tree.node.querySelector<HTMLElement>('[tabindex="0"]');
    (first ?? this.node).focus();
  }

  private _later(): void {
    this._draw();
  }

  private _draw(): void {
    if (!this.isVisible) {
      return;
    }
    const { known, connected } = this._clusters;
    const told = summary(this._clusters);
    say(this._sum, told.text);
    this._line.hidden = connected && known !== null;
    say(
      this._line,
      known === null
        ? connected
          ? 'reading …'
          : "the Jupyter server's part of mlcloud is not reached yet: it is tried again by itself"
        : 'no line to the Jupyter server: figures are of before, it is tried again by itself'
    );
    this.toggleClass('mlcloud-stale', !connected);
    this._tree.show(rows(this._view()));
  }

  private _view(): IView {
    return {
      clusters: this._clusters,
      actions: this._actions,
      files: this._files,
      now: Date.now(),
      isOpen: (key, byDefault) => this._open.get(key) ?? byDefault,
      detail: (cluster, session) => this._detail(cluster, session),
      log: (cluster, kind, name) => this._showLog(cluster, kind, name)
    };
  }

  // --- a session that is open -------------------------------------------------------------------

  private _detail(cluster: string, session: ISession): IDetail | null {
    const key = `${cluster}/${session.id}`;
    // What is saved changes with each safe cell, and with where it is.
    const version = `${session.safe_cells} ${session.finished_cells} ${session.state}`;
    const before = this._details.get(key);
    if (before?.version !== version) {
      this._details.set(key, { version, detail: before?.detail ?? null });
      void this._read(cluster, session.name).then(detail => {
        if (this._details.get(key)?.version === version) {
          this._details.set(key, { version, detail });
          this._draw();
        }
      });
    }
    return this._details.get(key)?.detail ?? null;
  }

  private async _read(cluster: string, session: string): Promise<IDetail> {
    const path = `sessions/${encodeURIComponent(session)}`;
    const ask = <T>(rest: string) =>
      this._clusters.server.gateway<T>(cluster, 'GET', `${path}/${rest}`);
    try {
      const [state, history] = await Promise.all([
        ask<ISavedState>('state'),
        ask<IBoundary[]>('history')
      ]);
      return { state, history, problem: '' };
    } catch (error) {
      return { state: null, history: null, problem: short((error as Error).message) };
    }
  }

  // --- a log ------------------------------------------------------------------------------------

  private _showLog(cluster: string, kind: 'session' | 'job', name: string): void {
    this._closeLog();
    const view = new LogView(`Log of ${name}`);
    const label = kind === 'job' ? (this._clusters.items.get(cluster)?.jobs?.get(name)?.name ?? name) : name;
    this._bottom.replaceChildren(
      h(
        'div',
        { class: 'mlcloud-line mlcloud-bottom-head' },
        h('span', { class: 'mlcloud-title' }, `Log of ${label}`),
        h(
          'span',
          { class: 'mlcloud-buttons' },
          button('Close', 'Close the log', () => {
            this._closeLog();
            this.activate();
          })
        )
      ),
      view.node
    );
    this._bottom.hidden = false;
    const follower = new Follower(this._clusters, cluster, kind, name, view);
    this._log = { view, follower };
    view.node.focus();
  }

  private _closeLog(): void {
    this._log?.follower.dispose();
    this._log?.view.dispose();
    this._log = null;
    this._bottom.hidden = true;
    this._bottom.replaceChildren();
  }

  private _tree: Tree;
  private _sum: HTMLElement;
  private _line: HTMLElement;
  private _bottom: HTMLElement;
  private _open = new Map<string, boolean>();
  private _details = new Map<string, { version: string; detail: IDetail | null }>();
  private _log: { view: LogView; follower: Follower } | null = null;
  private _ticking: ReturnType<typeof setInterval> | undefined;
}
