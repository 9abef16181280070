/** The cloud, in the colours of the theme. */

import { LabIcon } from '@jupyterlab/ui-components';

export const cloudIcon = new LabIcon({
  name: 'mlcloud:cloud',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
<path class="jp-icon3" fill="#616161" d="M19.35 10.04A7.49 7.49 0 0 0 12 4C9.11 4 6.6 5.64 5.35 8.04A5.99
 5.99 0 0 0 0 14a6 6 0 0 0 6 6h13a5 5 0 0 0 .35-9.96z"/></svg>`
});
