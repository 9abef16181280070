/** What a session's new state is worth saying. */

import { short } from './dom';
import type { IBudget, ISession } from './wire';

export interface IToast {
  kind: 'info' | 'success' | 'warning' | 'error';
  text: string;
}

/** What a session's new state is worth; null: nothing. */
export function told(before: ISession | undefined, now: ISession, budget?: IBudget): IToast | null {
  if (!before || before.state === now.state) {
    return null;
  }
  const why = now.detail ? `: ${short(now.detail)}` : '';
  switch (now.state) {
    case 'moving':
      return { kind: 'warning', text: `${now.name} moves to another node${why}` };
    case 'parked':
      return budget?.refuses
        ? { kind: 'error', text: `${now.name} is stopped: ${short(budget.refuses)}` }
        : { kind: 'info', text: `${now.name} is parked: its node is given back${why}` };
    case 'failed':
      return { kind: 'error', text: `${now.name} has failed${why}` };
    case 'idle':
    case 'busy':
      return before.state === 'moving'
        ? {
            kind: 'success',
            text: `${now.name} is on ${now.instance_type ?? 'another node'} ${now.zone ?? ''} now`
          }
        : null;
    default:
      return null;
  }
}
