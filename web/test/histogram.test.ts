import assert from "node:assert/strict";
import test from "node:test";
import { merge, quantile, type Histogram } from "../src/histogram.ts";

const of = (...buckets: [number | null, number][]): Histogram => ({
  count: buckets.reduce((sum, [, count]) => sum + count, 0),
  sum_us: 10,
  buckets: buckets.map(([le_us, count]) => ({ le_us, count })),
});

test("nothing is lost in a sum", () => {
  const sum = merge([of([45, 2], [null, 1]), undefined, of([32, 5], [45, 1])]);
  assert.deepEqual(sum, { count: 9, sum_us: 20, buckets: [{ le_us: 32, count: 5 }, { le_us: 45, count: 3 }, { le_us: null, count: 1 }] });
  assert.deepEqual(merge([]), { count: 0, sum_us: 0, buckets: [] });
});

test("a quantile lies in the bucket that has it", () => {
  const histogram = of([64, 50], [1024, 49], [null, 1]);
  for (const [q, low, high] of [[0, 45, 64], [0.25, 45, 64], [0.5, 64, 64], [0.6, 724, 1024], [0.99, 1024, 1024], [1, 1024, 1024]] as const) {
    const value = quantile(histogram, q)!;
    assert(value >= low && value <= high, `${q}: ${value}`);
  }
  assert.equal(quantile(of(), 0.5), undefined);
});
