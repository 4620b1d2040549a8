import assert from "node:assert/strict";
import test from "node:test";
import { bytes, count, endpoint, micros, percent, seconds } from "../src/format.ts";

test("numbers have three digits, and no zeros that tell nothing", () => {
  assert.deepEqual([0, 999, 1234, 999_999, 1_500_000, 2e9].map(count), ["0", "999", "1,234", "999,999", "1.5M", "2G"]);
  assert.deepEqual([0, 1023, 1024, 1536, 10 * 1024 ** 2, 1024 ** 6].map(bytes), ["0 B", "1023 B", "1 KiB", "1.5 KiB", "10 MiB", "1024 PiB"]);
  assert.deepEqual([0, 0.00001, 0.0123, 0.5, 1].map(percent), ["0 %", "< 0.01 %", "1.23 %", "50 %", "100 %"]);
});

test("times have the unit that fits", () => {
  assert.deepEqual([undefined, 0, 999, 1500, 12_345_678].map(micros), ["–", "0 µs", "999 µs", "1.5 ms", "12.3 s"]);
  assert.deepEqual([0.0005, 59.9, 60, 3600, 3725, 90_000].map(seconds), ["500 µs", "59.9 s", "1 min", "1 h", "1 h 2 min", "1 d 1 h"]);
});

test("an address of version 6 is told from its port", () => {
  assert.equal(endpoint({ address: "10.0.0.1", port: 80 }), "10.0.0.1:80");
  assert.equal(endpoint({ address: "fd00::1", port: 80 }), "[fd00::1]:80");
  assert.equal(endpoint({ address: "10.0.0.1" }), "10.0.0.1");
});
