/** Facts in words, as `mlcloud/units.py` and the footer have them. */

import type { IFacts } from './facts';

/** `$12.34`, `$0.31`, `$0.0011`, `<$0.0001`. */
export function usd(amount: number): string {
  if (amount === 0) {
    return '$0.00';
  }
  if (amount < 0.00005) {
    return '<$0.0001';
  }
  const decimals = amount >= 0.0995 ? 2 : amount >= 0.00995 ? 3 : 4;
  return `$${amount.toFixed(decimals).replace(/\B(?=(\d{3})+\.)/g, ',')}`;
}

/** `340 ms`, `12.4 s`, `3 min 12 s`, `2 h 05 min`. */
export function seconds(value: number): string {
  if (Math.round(value * 1000) < 1000) {
    return value >= 0.0005 ? `${Math.round(value * 1000)} ms` : '<1 ms';
  }
  if (Math.round(value * 10) < 600) {
    return `${value.toFixed(1)} s`;
  }
  const whole = Math.round(value);
  const two = (n: number) => String(n).padStart(2, '0');
  if (whole < 3600) {
    return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  }
  const minutes = Math.round(value / 60);
  return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
}

/** What stands on a cell: `local.cpu2 · 12.4 s · $0.0011`. */
export function brief(facts: IFacts): string {
  if (facts.state === 'running') {
    return `running in ${facts.session}`;
  }
  const parts = [facts.instance_type ?? facts.session];
  if (facts.seconds !== undefined) {
    parts.push(seconds(facts.seconds));
  }
  if (facts.usd !== undefined) {
    parts.push(usd(Number(facts.usd)));
  }
  return parts.join(' · ');
}

/** All there is to say, a line each. */
export function long(facts: IFacts): string {
  const lines = [`session ${facts.session}${facts.cluster ? ` of cluster ${facts.cluster}` : ''}`];
  if (facts.instance_type) {
    lines.push([facts.instance_type, facts.market, facts.zone].filter(Boolean).join(' '));
  }
  if (facts.usd !== undefined) {
    const saved = Number(facts.saved_usd ?? 0);
    const more = saved >= 0.00005 ? `, ${usd(saved)} less than on demand` : '';
    lines.push(`${usd(Number(facts.usd))}${more}${facts.simulated ? ' (simulated prices)' : ''}`);
  }
  if (facts.moves) {
    lines.push(facts.moves === 1 ? 'moved once' : `moved ${facts.moves} times`);
  }
  if (facts.state === 'error') {
    lines.push('it failed');
  }
  return lines.join('\n');
}

/** What a notebook's cells have cost together; null where none ran remotely. */
export function total(all: IFacts[]): string | null {
  const billed = all.filter(each => each.usd !== undefined);
  if (!billed.length) {
    return null;
  }
  const cost = billed.reduce((sum, each) => sum + Number(each.usd), 0);
  const time = billed.reduce((sum, each) => sum + (each.seconds ?? 0), 0);
  const cells = billed.length === 1 ? '1 remote cell' : `${billed.length} remote cells`;
  const simulated = billed.some(each => each.simulated) ? ' (simulated prices)' : '';
  return `${cells}: ${seconds(time)}, ${usd(cost)}${simulated}`;
}
