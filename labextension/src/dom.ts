/** Elements in few words. Text is set only where it differs: nothing is laid out for nothing. */

export type Attributes = Record<string, string | number | boolean | null | undefined>;

export function h(
  tag: string,
  attributes: Attributes = {},
  ...children: (Node | string | null)[]
): HTMLElement {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      made.setAttribute(name, value === true ? '' : String(value));
    }
  }
  made.append(...children.filter(each => each !== null));
  return made;
}

/** `off`: it cannot be pressed now. It keeps the focus all the same, as a disabled one would not. */
export function button(
  words: string,
  name: string,
  act: () => void,
  { off, ...attributes }: Attributes & { off?: boolean } = {}
): HTMLButtonElement {
  const all = { type: 'button', 'aria-label': name, title: name, ...attributes };
  const made = h('button', { ...all, 'aria-disabled': off ? 'true' : null }, words);
  made.addEventListener('click', event => {
    event.stopPropagation();
    if (!off) {
      act();
    }
  });
  return made as HTMLButtonElement;
}

export function say(element: HTMLElement, text: string): void {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

/** A text that somebody else wrote, at a length that can be shown. */
export function short(text: string, most = 300): string {
  const line = text.slice(0, 4 * most).replace(/\s+/g, ' ').trim();
  return line.length > most ? `${line.slice(0, most)} …` : line;
}
