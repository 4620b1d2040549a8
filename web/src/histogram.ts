// Distributions as the API tells them: buckets that are not cumulative, without the empty ones.

export interface Bucket {
  /** Durations up to this; `null`: all that are longer than any bound. */
  le_us: number | null;
  count: number;
}

export interface Histogram {
  count: number;
  sum_us: number;
  buckets: Bucket[];
}

/** A bound is so many times as large as the one before, of round trips and connects. */
export const STEP = Math.SQRT2;

/** All of them together. */
export function merge(all: (Histogram | undefined)[]): Histogram {
  const counts = new Map<number | null, number>();
  let sum_us = 0;
  for (const one of all) {
    sum_us += one?.sum_us ?? 0;
    for (const { le_us, count } of one?.buckets ?? []) counts.set(le_us, (counts.get(le_us) ?? 0) + count);
  }
  const buckets = [...counts].map(([le_us, count]) => ({ le_us, count }));
  buckets.sort((a, b) => (a.le_us ?? Infinity) - (b.le_us ?? Infinity));
  return { count: buckets.reduce((sum, bucket) => sum + bucket.count, 0), sum_us, buckets };
}

/** What a share `q` of them does not exceed, as exact as a bucket is wide, spread evenly on a logarithmic scale in it. */
export function quantile(histogram: Histogram, q: number): number | undefined {
  const rank = q * histogram.count;
  let before = 0;
  let last = 0;
  for (const { le_us, count } of histogram.buckets) {
    if (le_us === null) return last;
    if (before + count >= rank) {
      const within = count > 0 ? Math.max(rank - before, 0) / count : 1;
      return Math.round((le_us / STEP) * STEP ** within);
    }
    before += count;
    last = le_us;
  }
  return undefined;
}
