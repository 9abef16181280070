/** `%%remote` on a cell: whether it is there, put there with the options it had last, taken away. */

import type { Cell, ICellModel } from '@jupyterlab/cells';
import type { NotebookPanel } from '@jupyterlab/notebook';
import type { Kernel } from '@jupyterlab/services';

import { KEY } from './facts';

const LINE = /^\s*%%remote(?=[ \t]|\r?\n|$)([^\n]*)(\n|$)/;
// Loaded where it is used, if it is not: a notebook that was just opened need not be told.
const LOAD =
  "__import__('IPython').get_ipython().find_cell_magic('remote') or " +
  "__import__('IPython').get_ipython().run_line_magic('load_ext', 'mlcloud')";

/** The options of a cell's `%%remote`; null where it has none. */
export function optionsOf(source: string): string | null {
  const found = LINE.exec(source);
  return found ? (found[1] as string).trim() : null;
}

/** The cell's source with `%%remote` and these options, or, null, without it. */
export function withOptions(source: string, options: string | null): string {
  const bare = source.replace(LINE, '');
  if (options === null) {
    return bare;
  }
  return `%%remote${options ? ` ${options}` : ''}\n${bare}`;
}

/** The options that a `%%remote` put into this notebook is given: those it had last. */
export function lastOptions(panel: NotebookPanel): string {
  const model = panel.content.model;
  const kept = model?.getMetadata(KEY) as { remote?: string } | undefined;
  if (typeof kept?.remote === 'string') {
    return kept.remote;
  }
  const cells = [...panel.content.widgets].reverse();
  for (const cell of cells) {
    const options = cell.model.type === 'code' ? optionsOf(source(cell)) : null;
    if (options !== null) {
      return options;
    }
  }
  return '';
}

/** The code cells that a command is for. */
export function chosen(panel: NotebookPanel): Cell<ICellModel>[] {
  const notebook = panel.content;
  return notebook.widgets.filter(
    cell => cell.model.type === 'code' && notebook.isSelectedOrActive(cell)
  );
}

/** Put `%%remote` on these cells, or take it away where the first one has it. */
export function toggle(panel: NotebookPanel): void {
  const cells = chosen(panel);
  const first = cells[0];
  if (!first) {
    return;
  }
  const had = optionsOf(source(first));
  const options = had === null ? lastOptions(panel) : null;
  for (const cell of cells) {
    const before = optionsOf(source(cell));
    if ((before === null) !== (options === null)) {
      cell.model.sharedModel.setSource(withOptions(source(cell), options));
    }
  }
  if (had !== null) {
    const model = panel.content.model;
    const kept = (model?.getMetadata(KEY) as object | undefined) ?? {};
    model?.setMetadata(KEY, { ...kept, remote: had });
  }
}

export function source(cell: Cell<ICellModel>): string {
  return cell.model.sharedModel.getSource();
}

/** Have `%%remote` known in a kernel before a cell needs it; once for each start of the kernel. */
export class Loading {
  /** A cell is about to be run by this kernel. */
  before(text: string, kernel: Kernel.IKernelConnection | null | undefined): void {
    if (!kernel || optionsOf(text) === null || this._loaded.has(kernel)) {
      return;
    }
    this._loaded.add(kernel);
    kernel.statusChanged.connect((_, status) => {
      if (status === 'restarting' || status === 'autorestarting') {
        this._loaded.delete(kernel);
      }
    });
    kernel.requestExecute({ code: LOAD, silent: true, store_history: false, stop_on_error: false });
  }

  private readonly _loaded = new WeakSet<Kernel.IKernelConnection>();
}

/** Whether all of the notebook runs in a session, so that no cell needs `%%remote`. */
export async function isWhole(kernel: Kernel.IKernelConnection | null | undefined): Promise<boolean> {
  return kernel ? (await kernel.info).implementation === 'mlcloud' : false;
}
