/** The notebook's toolbar button "Remote": pressed where the active cell runs remotely. */

import type { NotebookPanel } from '@jupyterlab/notebook';
import { ToolbarButton } from '@jupyterlab/ui-components';

import { cloudIcon } from './icons';
import { isWhole, optionsOf, source, toggle } from './remote';

const WHOLE = 'The whole notebook runs in a session of mlcloud';

export function makeButton(panel: NotebookPanel): ToolbarButton {
  const button = new ToolbarButton({
    className: 'mlcloud-RemoteButton',
    icon: cloudIcon,
    label: 'Remote',
    tooltip: 'Run this cell remotely (%%remote)',
    pressedTooltip: 'Run this cell here again',
    onClick: () => toggle(panel)
  });
  let whole = false;
  let watched: { disconnect: () => void } | null = null;

  const draw = (): void => {
    if (button.isDisposed) {
      return;
    }
    const cell = panel.content.activeCell;
    const code = cell?.model?.type === 'code';
    button.enabled = code && !whole;
    button.pressed = code && !whole && optionsOf(source(cell)) !== null;
    button.node.title = whole ? WHOLE : '';
  };
  const watch = (): void => {
    watched?.disconnect();
    const model = panel.content.activeCell?.model;
    model?.contentChanged.connect(draw);
    watched = model ? { disconnect: () => model.contentChanged.disconnect(draw) } : null;
    draw();
  };
  const look = async (): Promise<void> => {
    whole = await isWhole(panel.sessionContext.session?.kernel).catch(() => false);
    draw();
  };
  const changed = (): void => void look();

  panel.content.activeCellChanged.connect(watch);
  panel.sessionContext.kernelChanged.connect(changed);
  panel.disposed.connect(() => {
    watched?.disconnect();
    panel.sessionContext.kernelChanged.disconnect(changed);
  });
  watch();
  changed();
  return button;
}
