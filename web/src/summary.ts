// What a container's history says of it: its numbers over the time, and what is wrong, in words.

import type { Labelled, Metrics, Past } from "./api.ts";
import * as format from "./format.ts";
import { merge, quantile, type Histogram } from "./histogram.ts";
import { strings } from "./strings.ts";

/** The metrics that a summary needs. */
export const METRICS = [
  "tcptide_rtt_seconds", "tcptide_connections", "tcptide_opened_total", "tcptide_closed_total",
  "tcptide_connect_failures_total", "tcptide_sent_bytes_total", "tcptide_received_bytes_total",
  "tcptide_sent_segments_total", "tcptide_retransmitted_segments_total", "tcptide_limited_seconds_total",
  "tcptide_zero_windows_total", "tcptide_listen_drops_total", "tcptide_listen_overflows_total",
];

/** From the worst. */
export const LEVELS = ["bad", "warn", "ok", "idle"] as const;
export type Level = (typeof LEVELS)[number];

export interface Reason {
  level: Level;
  /** How much it matters among those of its level. */
  weight: number;
  text: string;
}

export interface Summary {
  level: Level;
  reasons: Reason[];
  /** Sockets by state, now. */
  states: Labelled;
  established: number;
  opened: number;
  failed: number;
  failures: Labelled;
  sentBytes: number;
  receivedBytes: number;
  sentSegments: number;
  again: number;
  retransmits: Labelled;
  limited: Labelled;
  rtt: Histogram;
  p50?: number;
  p99?: number;
}

/** A metric without labels. */
export const single = (metrics: Metrics, name: string): number => {
  const value = metrics[name];
  return typeof value === "number" ? value : 0;
};

/** One with a label. */
export const labelled = (metrics: Metrics, name: string): Labelled => {
  const value = metrics[name];
  return typeof value === "object" && !("buckets" in value) ? (value as Labelled) : {};
};

export const distribution = (metrics: Metrics, name: string): Histogram | undefined => {
  const value = metrics[name];
  return typeof value === "object" && "buckets" in value ? (value as Histogram) : undefined;
};

export const total = (all: Labelled): number => Object.values(all).reduce((sum, n) => sum + n, 0);

/** The label of most. */
const most = (all: Labelled): string => Object.entries(all).sort((a, b) => b[1] - a[1])[0]?.[0] ?? "";

function sums(past: Past, name: string): Labelled {
  const sum: Labelled = {};
  for (const { metrics } of past.steps) {
    for (const [label, n] of Object.entries(labelled(metrics, name))) sum[label] = (sum[label] ?? 0) + n;
  }
  return sum;
}

const sum = (past: Past, name: string): number => past.steps.reduce((all, { metrics }) => all + single(metrics, name), 0);

/** What it counted in all steps; `last` is the newest of them. */
export function summarize(past: Past, last: number): Summary {
  const failures = sums(past, "tcptide_connect_failures_total");
  const retransmits = sums(past, "tcptide_retransmitted_segments_total");
  const rtt = merge(past.steps.map(({ metrics }) => distribution(metrics, "tcptide_rtt_seconds")));
  const now = past.steps.at(-1);
  const states = now?.step === last ? labelled(now.metrics, "tcptide_connections") : {};
  const opened = total(sums(past, "tcptide_opened_total"));
  const summary: Summary = {
    level: "ok",
    reasons: [],
    states,
    established: states["established"] ?? 0,
    opened,
    failed: total(failures),
    failures,
    sentBytes: sum(past, "tcptide_sent_bytes_total"),
    receivedBytes: sum(past, "tcptide_received_bytes_total"),
    sentSegments: sum(past, "tcptide_sent_segments_total"),
    again: total(retransmits),
    retransmits,
    limited: sums(past, "tcptide_limited_seconds_total"),
    rtt,
    p50: quantile(rtt, 0.5),
    p99: quantile(rtt, 0.99),
  };
  summary.reasons = reasons(summary, past);
  const isIdle = summary.sentSegments + summary.opened === 0;
  summary.level = summary.reasons[0]?.level ?? (isIdle ? "idle" : "ok");
  return summary;
}

/** Fewer of something tell nothing. */
const FEW = 3;

function reasons(summary: Summary, past: Past): Reason[] {
  const { reasons: say } = strings;
  const found: Reason[] = [];
  const add = (level: Level, weight: number, text: string) => found.push({ level, weight, text });
  const level = (share: number, bad: number): Level => (share >= bad ? "bad" : "warn");

  const canceled = summary.failures["canceled"] ?? 0;
  const failed = summary.failed - canceled;
  if (failed > 0) {
    const share = failed / Math.max(summary.opened, failed);
    const { canceled: _, ...failures } = summary.failures;
    add(level(failed >= FEW ? share : 0, 0.05), 2 + share, say.failed(format.count(failed), format.percent(share), format.word(most(failures))));
  }
  const share = summary.again / Math.max(summary.sentSegments, summary.again);
  if (summary.again >= FEW && share >= 0.01) {
    add(level(share, 0.05), 1 + share, say.retransmits(format.percent(share), format.word(most(summary.retransmits))));
  }
  const overflows = sum(past, "tcptide_listen_overflows_total");
  const drops = sum(past, "tcptide_listen_drops_total");
  if (overflows > 0) add("bad", 1.5, say.overflows(format.count(overflows)));
  else if (drops > 0) add("bad", 1.5, say.drops(format.count(drops)));
  const limited = total(summary.limited);
  for (const by of ["rwnd", "sndbuf"] as const) {
    const part = (summary.limited[by] ?? 0) / Math.max(limited, 1e-9);
    if (limited >= 1 && part >= 0.2) add("warn", part, say[by](format.percent(part)));
  }
  const own = sums(past, "tcptide_zero_windows_total")["own"] ?? 0;
  if (own > 0) add("warn", 0.5, say.own(format.count(own)));
  const resets = sums(past, "tcptide_closed_total");
  const reset = ((resets["reset_sent"] ?? 0) + (resets["reset_received"] ?? 0)) / Math.max(total(resets), 1);
  if (total(resets) >= 10 && reset >= 0.2) add("warn", reset, say.resets(format.percent(reset)));
  const { p50, p99 } = summary;
  if (p50 && p99 && summary.rtt.count >= 100 && p99 >= 20_000 && p99 >= 10 * p50) {
    add("warn", 0.1, say.tail(format.micros(p99), format.number(Math.round(p99 / p50))));
  }
  return found.sort((a, b) => LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level) || b.weight - a.weight);
}

/** The worst first; of those that are as bad, the most active. */
export function compare(a: Summary, b: Summary): number {
  return LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level)
    || (b.reasons[0]?.weight ?? 0) - (a.reasons[0]?.weight ?? 0)
    || b.sentSegments - a.sentSegments;
}
