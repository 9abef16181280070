/**
 * mlcloud in JupyterLab and Notebook.
 *
 *   mlcloud:clusters   the state behind all others, by one WebSocket
 *   mlcloud:panel      the sidebar
 *   mlcloud:status     $/h and today's dollars in the status bar
 *   mlcloud:toasts     a session moves, parks, is stopped
 *   cells/             what notebooks' cells get
 */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';

import { cells } from './cells';
import { Clusters, IClusters } from './clusters';
import { Server } from './server';

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

const plugins: JupyterFrontEndPlugin<unknown>[] = [clusters, ...cells];

export default plugins;
