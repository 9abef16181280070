export { icon as cloudIcon } from '../icon';

/** The launcher's cards have pictures of kernels there, and no icons of the theme. */
export const cardUrl =
  'data:image/svg+xml;utf8,' +
  encodeURIComponent(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
<path d="M18 50a13 13 0 0 1-2-25.8A17 17 0 0 1 48.6 22 14 14 0 0 1 47 50z" fill="#3b82d6"/>
<path d="M20 34h24M20 41h15" stroke="#fff" stroke-width="3.5" stroke-linecap="round"/></svg>`);
