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
import { button, h, say } from '../dom';
import type { Files } from '../files';
import type { IBoundary, ISavedState, ISeries, ISession, IStep } from '../wire';
import { Follower } from './follow';
import { LogView } from './log';
import { Reading } from './reading';
import type { IRead } from './reading';
import { rows } from './rows';
import type { ISaved, IView } from './rows/view';
import { Tree } from './tree';
import { summary } from '../summary';

const CHECKPOINTS_MS = 5000; // a store is listed as often, at most
const STEPS = 20; // of a series, shown

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
      series: cluster => this._series(cluster),
      steps: (cluster, series) => this._stepsOf(cluster, series),
      log: (cluster, kind, name) => this._showLog(cluster, kind, name)
    };
  }

  // --- what is open -----------------------------------------------------------------------------

  private _detail(cluster: string, session: ISession): IRead<ISaved> {
    // What is saved changes with each safe cell, and with where it is.
    const version = `${session.safe_cells} ${session.finished_cells} ${session.state}`;
    const path = `sessions/${encodeURIComponent(session.name)}`;
    const ask = <T>(rest: string) =>
      this._clusters.server.gateway<T>(cluster, 'GET', `${path}/${rest}`);
    return this._saved.get(`${cluster}/${session.id}`, version, async () => {
      const [state, history] = await Promise.all([
        ask<ISavedState>('state'),
        ask<IBoundary[]>('history')
      ]);
      return { state, history };
    });
  }

  private _series(cluster: string): IRead<ISeries[]> {
    const { server } = this._clusters;
    return this._checkpoints.get(cluster, this._worked(cluster), () =>
      server.gateway<ISeries[]>(cluster, 'GET', 'checkpoints')
    );
  }

  private _stepsOf(cluster: string, series: ISeries): IRead<IStep[]> {
    const query = new URLSearchParams({ series: series.name, last: String(STEPS) });
    const version = `${series.steps} ${series.newest} ${series.written_at}`;
    return this._steps.get(`${cluster}/${series.name}`, version, () =>
      this._clusters.server.gateway<IStep[]>(cluster, 'GET', `checkpoints/steps?${query}`)
    );
  }

  /** Another text whenever somebody may have saved: while something runs, and at its end. */
  private _worked(cluster: string): string {
    const items = this._clusters.items.get(cluster);
    const sessions = [...(items?.sessions.values() ?? [])].map(
      each => `${each.name} ${each.last_event}`
    );
    const jobs = [...(items?.jobs?.values() ?? [])].map(each => `${each.id} ${each.last_log}`);
    const running = [...(items?.sessions.values() ?? [])].some(each => each.running);
    return [...sessions, ...jobs, running ? Math.floor(Date.now() / CHECKPOINTS_MS) : ''].join();
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
  private _saved = new Reading<ISaved>(() => this._draw());
  private _checkpoints = new Reading<ISeries[]>(() => this._draw(), CHECKPOINTS_MS);
  private _steps = new Reading<IStep[]>(() => this._draw());
  private _log: { view: LogView; follower: Follower } | null = null;
  private _ticking: ReturnType<typeof setInterval> | undefined;
}
