/** Lines of a log as a terminal would show them. */

const LONGEST = 2000; // characters of a line

/** A line as a terminal leaves it: what a carriage return wrote over is gone, so are colours. */
export function settled(line: string): string {
  let text = line.length > 4 * LONGEST ? line.slice(0, 4 * LONGEST) : line;
  if (text.includes('\u001b')) {
    text = text.replace(/\u001b\[[0-9;?]*[A-Za-z]/g, '');
  }
  if (text.includes('\r')) {
    const ended = text.endsWith('\r');
    const parts = text.split('\r').filter(part => part !== '');
    text = (parts[parts.length - 1] ?? '') + (ended ? '\r' : '');
  }
  return text.length > LONGEST ? `${text.slice(0, LONGEST)} …` : text;
}
