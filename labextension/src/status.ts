/** The status bar's item: what all clusters bill, and how that stands beside the budgets. */

import { Widget } from '@lumino/widgets';

import type { Clusters } from './clusters';
import { h, say } from './dom';
import { summary } from './summary';

export class Status extends Widget {
  constructor(
    private _clusters: Clusters,
    open: () => void
  ) {
    super();
    this.addClass('mlcloud-status');
    this._button = h('button', { type: 'button', class: 'mlcloud-status-button' });
    this._button.addEventListener('click', open);
    this.node.append(this._button);
    _clusters.changed.connect(this._draw, this);
    this._draw();
  }

  override dispose(): void {
    this._clusters.changed.disconnect(this._draw, this);
    super.dispose();
  }

  private _draw(): void {
    const { text, tone, title } = summary(this._clusters);
    say(this._button, this._clusters.connected ? text : `${text} ?`);
    this._button.title = title;
    this._button.setAttribute('aria-label', `mlcloud: ${text}. ${title}`);
    for (const each of ['warn', 'bad']) {
      this._button.classList.toggle(each, each === tone);
    }
  }

  private _button: HTMLElement;
}
