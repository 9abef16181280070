import { LabIcon } from '@jupyterlab/ui-components';

export const icon = new LabIcon({
  name: 'mlcloud:cloud',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 16 16">
  <path class="jp-icon3" fill="#616161" d="M4.5 12.5a3.5 3.5 0 0 1-.4-6.98 4.5 4.5 0 0 1 8.6 1A3.02 3.02 0 0 1 12.2 12.5zm3.4-6.4L5.6 9h1.7v2.2L9.8 8.3H8.1V6.1z"/>
</svg>`
});
