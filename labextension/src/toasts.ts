/** A word when a session moves, parks, is stopped or fails, and when a budget is spent. */

import { Notification } from '@jupyterlab/apputils';

import type { Clusters } from './clusters';
import { short } from './dom';
import { told } from './told';
import type { Frame, IBudget, ISession } from './wire';

const FOR_MS = 8000;

export class Toasts {
  constructor(private _clusters: Clusters) {
    _clusters.arriving.connect(this._look, this);
  }

  private _look(_: Clusters, frame: Frame): void {
    if ('clusters' in frame || frame.whole) {
      return;
    }
    const items = this._clusters.items.get(frame.cluster);
    if (!items) {
      return;
    }
    const budgets = new Map(items.budgets);
    for (const [key, value] of Object.entries(frame.set)) {
      if (key.startsWith('budget/')) {
        const budget = value as IBudget;
        const name = budget.session ?? '';
        if (budget.refuses && !budgets.get(name)?.refuses) {
          Notification.error(short(budget.refuses), { autoClose: FOR_MS });
        }
        budgets.set(name, budget);
      }
    }
    for (const [key, value] of Object.entries(frame.set)) {
      if (key.startsWith('session/')) {
        const now = value as ISession;
        const own = budgets.get(now.name);
        const toast = told(
          items.sessions.get(now.name),
          now,
          own?.refuses ? own : budgets.get('')
        );
        if (toast) {
          Notification.emit(toast.text, toast.kind, { autoClose: FOR_MS });
        }
      }
    }
  }
}
