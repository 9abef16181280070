/** The cloud, in the colours of the theme. */

import { LabIcon } from '@jupyterlab/ui-components';

export const cloudIcon = new LabIcon({
  name: 'mlcloud:cloud',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
<path class="jp-icon3" fill="#616161" d="M19.35 10.04A7.49 7.49 0 0 0 12 4C9.11 4 6.6 5.64 5.35 8.04A5.99
 5.99 0 0 0 0 14a6 6 0 0 0 6 6h13a5 5 0 0 0 .35-9.96z"/></svg>`
});

/** The launcher's cards have pictures of kernels there, and no icons of the theme. */
export const cardUrl =
  'data:image/svg+xml;utf8,' +
  encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<path d="M18 50a13 13 0 0 1-2-25.8A17 17 0 0 1 48.6 22 14 14 0 0 1 47 50z" fill="#3b82d6"/>
<path d="M20 34h24M20 41h15" stroke="#fff" stroke-width="3.5" stroke-linecap="round"/></svg>`);
