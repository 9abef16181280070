/**
 * What notebooks' cells get of mlcloud.
 *
 *   mlcloud:cells          facts of remote executions kept in their cells; badges; outputs made again
 *   mlcloud:remote         the toolbar's "Remote", commands, a card in the launcher
 */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, Notification } from '@jupyterlab/apputils';
import { ILauncher } from '@jupyterlab/launcher';
import { INotebookTracker, NotebookActions } from '@jupyterlab/notebook';
import type { NotebookPanel } from '@jupyterlab/notebook';

import { Badges } from './badge';
import { factsOf, KEY } from './facts';
import type { IFacts } from './facts';
import { Following } from './follow';
import { cardUrl, cloudIcon } from './icons';
import { Rebuilding } from './rebuild';
import { chosen, isWhole, Loading, optionsOf, source, toggle } from './remote';
import { makeButton } from './toolbar';
import { total } from './words';

const CATEGORY = 'mlcloud';

const rebuildings = new WeakMap<NotebookPanel, Rebuilding>();

const facts: JupyterFrontEndPlugin<void> = {
  id: 'mlcloud:cells',
  description: 'What remote cells cost, and their outputs after a reload.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ICommandPalette],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker,
    palette: ICommandPalette | null
  ) => {
    const begin = async (panel: NotebookPanel): Promise<void> => {
      await panel.context.ready;
      if (panel.isDisposed) {
        return;
      }
      new Following(panel);
      new Badges(panel);
      const rebuilding = new Rebuilding(panel, app.serviceManager.serverSettings);
      rebuildings.set(panel, rebuilding);
      rebuilding.start();
    };
    notebooks.forEach(panel => void begin(panel));
    notebooks.widgetAdded.connect((_, panel) => void begin(panel));

    const current = (): NotebookPanel | null => notebooks.currentWidget;
    const isEnabled = (): boolean => allFacts(current()).length > 0;
    app.commands.addCommand('mlcloud:rebuild-outputs', {
      label: 'Rebuild Outputs of Remote Cells from the Journal',
      isEnabled,
      execute: async () => {
        const panel = current();
        const done = panel ? await rebuildings.get(panel)?.all() : 0;
        Notification.info(
          done === 1 ? 'The outputs of 1 cell are rebuilt.' : `The outputs of ${done} cells are rebuilt.`,
          { autoClose: 4000 }
        );
      }
    });
    app.commands.addCommand('mlcloud:notebook-cost', {
      label: 'Show What This Notebook Cost',
      isEnabled,
      execute: () => {
        const text = total(allFacts(current())) ?? 'no cell has a bill yet';
        Notification.info(`This notebook: ${text}`, { autoClose: 15_000 });
      }
    });
    app.commands.addCommand('mlcloud:strip-facts', {
      label: 'Remove Places and Costs from This Notebook',
      isEnabled,
      execute: () => {
        for (const cell of current()?.content.widgets ?? []) {
          if (factsOf(cell.model)) {
            cell.model.deleteMetadata(KEY);
          }
        }
      }
    });
    for (const command of ['rebuild-outputs', 'notebook-cost', 'strip-facts']) {
      palette?.addItem({ command: `mlcloud:${command}`, category: CATEGORY });
    }
  }
};

const remote: JupyterFrontEndPlugin<void> = {
  id: 'mlcloud:remote',
  description: 'A toggle for %%remote, and a remote notebook in the launcher.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [ICommandPalette, ILauncher],
  activate: (
    app: JupyterFrontEnd,
    notebooks: INotebookTracker,
    palette: ICommandPalette | null,
    launcher: ILauncher | null
  ) => {
    app.docRegistry.addWidgetExtension('Notebook', {
      createNew: (widget: unknown) => {
        const panel = widget as NotebookPanel;
        const button = makeButton(panel);
        const names = [...panel.toolbar.names()];
        const after = names.indexOf('cellType');
        panel.toolbar.insertItem(after < 0 ? 10 : after + 1, 'mlcloud-remote', button);
        return button;
      }
    });

    const loading = new Loading();
    NotebookActions.executionScheduled.connect((_, { notebook, cell }) => {
      const panel = notebooks.find(each => each.content === notebook);
      loading.before(source(cell), panel?.sessionContext.session?.kernel);
    });

    const { commands } = app;
    const current = (): NotebookPanel | null => notebooks.currentWidget;
    const isEnabled = (): boolean => {
      const panel = current();
      return panel !== null && chosen(panel).length > 0;
    };
    commands.addCommand('mlcloud:toggle-remote', {
      label: 'Run Selected Cells Remotely',
      caption: 'Put %%remote on the selected cells with the options it had last, or take it away',
      icon: cloudIcon,
      isEnabled,
      isToggleable: true,
      isToggled: () => {
        const cell = current()?.content.activeCell;
        return cell?.model?.type === 'code' && optionsOf(source(cell)) !== null;
      },
      execute: async () => {
        const panel = current();
        if (panel && !(await isWhole(panel.sessionContext.session?.kernel))) {
          toggle(panel);
        }
      }
    });
    commands.addCommand('mlcloud:new-notebook', {
      label: args => (args['isPalette'] ? 'New Notebook with Remote Cells' : 'Remote cells'),
      caption: 'A notebook here whose cells run in a session of mlcloud',
      icon: cloudIcon,
      execute: async args => {
        const panel = (await commands.execute('notebook:create-new', {
          cwd: args['cwd'] ?? '',
          kernelName: args['kernelName'] ?? 'python3'
        })) as NotebookPanel;
        await panel.context.ready;
        const cells = panel.content.model?.sharedModel;
        if (cells) {
          cells.transact(() => {
            cells.getCell(0).setSource('%load_ext mlcloud');
            cells.insertCell(1, { cell_type: 'code', source: '%%remote\n' });
          });
          panel.content.activeCellIndex = 1;
        }
        return panel;
      }
    });
    for (const command of ['toggle-remote', 'new-notebook']) {
      const args = { isPalette: true };
      palette?.addItem({ command: `mlcloud:${command}`, category: CATEGORY, args });
    }
    launcher?.add({
      command: 'mlcloud:new-notebook',
      category: 'Notebook',
      rank: 50,
      kernelIconUrl: cardUrl
    });
  }
};

function allFacts(panel: NotebookPanel | null): IFacts[] {
  const cells = panel?.content.widgets ?? [];
  return cells.map(cell => factsOf(cell.model)).filter((each): each is IFacts => each !== null);
}

export const cells: JupyterFrontEndPlugin<unknown>[] = [facts, remote];
