/** The panel, as its rows see it. */

import type { Actions } from '../../actions';
import type { Clusters } from '../../clusters';
import type { Files } from '../../files';
import type { IBoundary, ISavedState, ISeries, ISession, IStep } from '../../wire';
import type { IRead } from '../reading';

/** What is saved of a session. */
export interface ISaved {
  state: ISavedState;
  history: IBoundary[];
}

/** What the rows are made from, beside the state. */
export interface IView {
  clusters: Clusters;
  actions: Actions;
  files: Files;
  isOpen(key: string, byDefault: boolean): boolean;
  detail(cluster: string, session: ISession): IRead<ISaved>;
  series(cluster: string): IRead<ISeries[]>;
  steps(cluster: string, series: ISeries): IRead<IStep[]>;
  log(cluster: string, kind: 'session' | 'job', name: string): void;
  now: number;
}
