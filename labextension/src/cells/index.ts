/** What notebooks' cells get of mlcloud. */

import type { JupyterFrontEndPlugin } from '@jupyterlab/application';

export const cells: JupyterFrontEndPlugin<unknown>[] = [];
