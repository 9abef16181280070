/** Figures in words, as `mlcloud/units.py` writes them. */

export function usd(value: string | number): string {
  const dollars = Number(value);
  if (dollars > 0 && dollars < 0.01) {
    return dollars < 0.0001 ? '<$0.0001' : `$${dollars.toFixed(4)}`;
  }
  return `$${dollars.toLocaleString('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;
}

export function rate(value: string | number): string {
  const dollars = Number(value);
  const text = dollars > 0 && dollars < 0.1 ? `$${Number(dollars.toFixed(4))}` : usd(dollars);
  return `${text}/h`;
}

export function bytes(value: number): string {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

/** `42 s`, `3 min`, `2 h 5 min`. */
export function long(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) {
    return `${whole} s`;
  }
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) {
    return `${minutes} min`;
  }
  const hours = Math.floor(minutes / 60);
  const rest = minutes % 60;
  return hours < 48 ? `${hours} h${rest ? ` ${rest} min` : ''}` : `${Math.round(hours / 24)} days`;
}

/** `1:05` until then. */
export function countdown(deadline: string, now: number): string {
  const left = Math.max(0, Math.round((Date.parse(deadline) - now) / 1000));
  return `${Math.floor(left / 60)}:${String(left % 60).padStart(2, '0')}`;
}

export function since(moment: string, now: number): string {
  return long((now - Date.parse(moment)) / 1000);
}

export function counted(count: number, word: string): string {
  return `${count.toLocaleString('en-US')} ${word}${count === 1 ? '' : 's'}`;
}
