/**
 * What the panel's tree has in it, from the clusters' state and the files beside the notebooks.
 *
 *     cluster ── budgets, nodes, sessions ── variables, snapshots
 *             ├─ jobs
 *             └─ checkpoints ── series ── steps
 *     file ── groups, problems, changes
 *
 * Each is a list of rows; `pieces` puts a row together, `../tree` shows it.
 */

import type { IRow } from '../tree';
import { cluster } from './cluster';
import { file } from './files';
import type { IView } from './view';

export function rows(view: IView): IRow[] {
  return [
    ...(view.clusters.known ?? []).flatMap(known => cluster(view, known)),
    ...(view.files.found ?? []).flatMap(each => file(view, each))
  ];
}
