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
  // The property, and no listener: `patch` takes it over.
  made.onclick = event => {
    event.stopPropagation();
    if (!off) {
      act();
    }
  };
  return made as HTMLButtonElement;
}

/**
 * Make what is in `into` be as `wanted`, by the least: what stays is laid out once, and keeps the
 * focus. `tabindex` is left to whoever moves the focus.
 */
export function patch(into: Node, wanted: readonly (Node | string)[]): void {
  wanted.forEach((each, index) => {
    const now = into.childNodes[index];
    if (typeof each === 'string') {
      if (now?.nodeType === Node.TEXT_NODE) {
        write(now, each);
        return;
      }
      each = document.createTextNode(each);
    } else if (now?.nodeName === each.nodeName) {
      if (now instanceof HTMLElement && each instanceof HTMLElement) {
        mend(now, each);
        patch(now, [...each.childNodes]);
      } else if (now.nodeType === Node.TEXT_NODE) {
        write(now, each.nodeValue ?? '');
      } else {
        into.replaceChild(each, now);
      }
      return;
    }
    if (now) {
      into.replaceChild(each, now);
    } else {
      into.appendChild(each);
    }
  });
  while (into.childNodes.length > wanted.length) {
    into.lastChild!.remove();
  }
}

function write(node: Node, text: string): void {
  if (node.nodeValue !== text) {
    node.nodeValue = text;
  }
}

function mend(now: HTMLElement, wanted: HTMLElement): void {
  now.onclick = wanted.onclick;
  for (const { name } of [...now.attributes]) {
    if (name !== 'tabindex' && !wanted.hasAttribute(name)) {
      now.removeAttribute(name);
    }
  }
  for (const { name, value } of wanted.attributes) {
    if (name !== 'tabindex' && now.getAttribute(name) !== value) {
      now.setAttribute(name, value);
    }
  }
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
