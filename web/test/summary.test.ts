import assert from "node:assert/strict";
import test from "node:test";
import type { Metrics, Past } from "../src/api.ts";
import { compare, summarize } from "../src/summary.ts";
import { href, parse } from "../src/route.ts";

const past = (...steps: Metrics[]): Past => ({ container: { name: "a", cgroup_id: 1 }, steps: steps.map((metrics, step) => ({ step, metrics })) });
const busy = { tcptide_sent_segments_total: 1000, tcptide_opened_total: { active: 100 } };

test("who fails is worse than who sends again, and that is worse than who does well", () => {
  const failing = summarize(past({ ...busy, tcptide_connect_failures_total: { refused: 40, timeout: 2 } }), 0);
  const again = summarize(past(busy, { tcptide_retransmitted_segments_total: { fast: 30 } }), 1);
  const well = summarize(past({ ...busy, tcptide_connections: { established: 7 } }), 0);
  const idle = summarize(past({ tcptide_connections: { listen: 1 } }), 0);
  assert.deepEqual([idle, well, again, failing].sort(compare), [failing, again, well, idle]);
  assert.deepEqual([failing.level, again.level, well.level, idle.level], ["bad", "warn", "ok", "idle"]);
  assert.equal(failing.reasons[0]?.text, "42 connects failed (42 %), most refused");
  assert.equal(again.reasons[0]?.text, "3 % of segments sent again, most fast");
  assert.equal(well.established, 7);
});

test("a connect that the application itself gave up is no failure", () => {
  const summary = summarize(past({ ...busy, tcptide_connect_failures_total: { canceled: 40 } }), 0);
  assert.deepEqual([summary.level, summary.failed], ["ok", 40]);
});

test("connections are those of the last step, none where there is none", () => {
  assert.equal(summarize(past({ tcptide_connections: { established: 7 } }), 3).established, 0);
});

test("links keep the time, and names of any kind", () => {
  const query = new URLSearchParams("range=1h&focus=7");
  assert.equal(href(["container", "a/b ?#%"], query), "#/container/a%2Fb%20%3F%23%25?range=1h");
  assert.deepEqual(parse("#/container/a%2Fb%20%3F%23%25?range=1h").path, ["container", "a/b ?#%"]);
  assert.equal(href([], query, { range: undefined }), "#/");
  assert.deepEqual(parse("#/%E0%A4%A").path, ["%E0%A4%A"]);
});
