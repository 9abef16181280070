/**
 * mlcloud in JupyterLab and Notebook.
 *
 *   mlcloud:clusters   the state behind all others, by one WebSocket
 *   mlcloud:panel      the sidebar, the status bar's item, and words when something happens
 *   cells/             what notebooks' cells get
 */

import { ILayoutRestorer } from '@jupyterlab/application';
import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker } from '@jupyterlab/notebook';
import { IStatusBar } from '@jupyterlab/statusbar';

import { Actions } from './actions';
import { cells } from './cells';
import { Clusters, IClusters } from './clusters';
import { Files } from './files';
import { icon } from './icon';
import { Panel } from './panel/panel';
import { Server } from './server';
import { Status } from './status';
import { Toasts } from './toasts';

const OPEN = 'mlcloud:open';

const clusters: JupyterFrontEndPlugin<Clusters> = {
  id: 'mlcloud:clusters',
  description: 'The clusters of mlcloud, live.',
  autoStart: true,
  provides: IClusters,
  activate: (app: JupyterFrontEnd) => {
    const made = new Clusters(new Server(app.serviceManager.serverSettings));
    // Nothing of Lab's start waits for it.
    void app.restored.then(() => made.open());
    return made;
  }
};

const panel: JupyterFrontEndPlugin<void> = {
  id: 'mlcloud:panel',
  description: 'Clusters, nodes, sessions and jobs, and what they cost.',
  autoStart: true,
  requires: [IClusters],
  optional: [ICommandPalette, ILayoutRestorer, INotebookTracker, IStatusBar],
  activate: (
    app: JupyterFrontEnd,
    clusters: Clusters,
    palette: ICommandPalette | null,
    restorer: ILayoutRestorer | null,
    notebooks: INotebookTracker | null,
    statusBar: IStatusBar | null
  ) => {
    const files = new Files(clusters, app.serviceManager.contents, notebooks);
    const made = new Panel(clusters, new Actions(clusters.server, notebooks), files);
    made.title.icon = icon;
    made.title.caption = 'mlcloud';
    app.shell.add(made, 'right', { rank: 600, type: 'mlcloud' });
    restorer?.add(made, 'mlcloud-panel');
    app.commands.addCommand(OPEN, {
      label: 'Show mlcloud',
      caption: 'Clusters, sessions and jobs, and what they cost',
      execute: () => app.shell.activateById(made.id)
    });
    palette?.addItem({ command: OPEN, category: 'mlcloud' });
    statusBar?.registerStatusItem('mlcloud:status', {
      item: new Status(clusters, () => void app.commands.execute(OPEN)),
      align: 'right',
      rank: 900
    });
    new Toasts(clusters);
  }
};

const plugins: JupyterFrontEndPlugin<unknown>[] = [clusters, panel, ...cells];

export default plugins;
