// What the agent answers, and how it is asked: again and again while the page is seen.

import { useEffect, useState } from "preact/hooks";
import type { Histogram } from "./histogram.ts";

export interface Container {
  name: string;
  id?: string;
  runtime?: string;
  image?: string;
  pod?: string;
  namespace?: string;
  cgroup_id: number;
  cgroup_path?: string;
}

export type Labelled = Record<string, number>;

/** Metrics by name; one that is absent is zero or not measured. */
export type Metrics = Record<string, number | Labelled | Histogram | undefined>;

export interface Past {
  container: Container;
  steps: { step: number; metrics: Metrics }[];
}

export interface History {
  measured: string[];
  steps: { began: string; seconds: number }[];
  matched: number;
  containers: Past[];
}

export interface End {
  address?: string;
  port?: number;
  name?: string;
  container?: Container;
}

export interface Connection {
  time?: string;
  event?: string;
  container: Container;
  process?: { pid: number; comm: string };
  cookie: number;
  direction?: string;
  state?: string;
  local: End;
  peer: End;
  connect_us?: number;
  duration_us?: number;
  sent_bytes?: number;
  received_bytes?: number;
  before?: { sent_bytes?: number; received_bytes?: number };
  retransmits?: { total?: number };
  rtt?: { srtt_us?: number };
  close?: { reason?: string };
  queues?: { accept: number; limit: number; syn: number; drops: number };
}

export interface Side {
  srtt_us?: number;
  sent_bytes: number;
  received_bytes: number;
  segments_out: number;
  retransmits: number;
}

export type Node = { container: Container } | { name: string } | { address: string };

export interface Edge {
  client: Node;
  server: Node;
  port?: number;
  connections: number;
  opened?: number;
  failed?: number;
  rates?: { opened: number; failed: number; sent_bytes: number; received_bytes: number };
  client_side?: Side;
  server_side?: Side;
}

export interface Health {
  status: string;
  version: string;
  kernel: string;
  uptime_seconds: number;
  lost: Record<string, number>;
  runtimes: string[];
  kubernetes?: string;
}

export interface Program {
  name: string;
  hook: string;
  status: string;
  reason?: string;
  required: boolean;
  feeds: string;
}

/** What the agent said, with a status that is no success. */
export class Refused extends Error {}

export async function ask<T>(path: string, signal?: AbortSignal): Promise<T> {
  const answer = await fetch(path, { signal, headers: { Accept: "application/json" } });
  if (answer.ok) return (await answer.json()) as T;
  const said = await answer.json().catch(() => undefined);
  throw new Refused(said?.error ?? `HTTP ${answer.status}`);
}

export async function text(path: string, signal?: AbortSignal): Promise<string> {
  const answer = await fetch(path, { signal });
  if (answer.ok) return answer.text();
  throw new Refused(`HTTP ${answer.status}`);
}

/** Whether the agent answered when it was asked last; those who show that are told. */
let reachable = true;
const watchers = new Set<(reachable: boolean) => void>();

export function setReachable(now: boolean) {
  if (now !== reachable) {
    reachable = now;
    watchers.forEach((tell) => tell(now));
  }
}

export function useReachable(): boolean {
  const [now, set] = useState(reachable);
  useEffect(() => {
    watchers.add(set);
    return () => void watchers.delete(set);
  }, []);
  return now;
}

export interface Answer<T> {
  data?: T;
  /** Why there is none. */
  refused?: string;
}

/** How long until an agent that did not answer is asked again. */
const PATIENCE = 2000;

/** Asks now, and again so many milliseconds after each answer, while somebody looks. What was answered last stays. */
export function usePoll<T>(path: string | undefined, every: number, get: (path: string, signal: AbortSignal) => Promise<T> = ask): Answer<T> {
  const [answer, set] = useState<Answer<T> & { path?: string }>({});
  useEffect(() => {
    if (path === undefined) return;
    const abort = new AbortController();
    let timer: number | undefined;
    let isAsking = false;
    const next = async () => {
      timer = undefined;
      if (document.hidden || isAsking) return;
      isAsking = true;
      let wait = every;
      try {
        set({ path, data: await get(path, abort.signal) });
        setReachable(true);
      } catch (error) {
        if (abort.signal.aborted) return;
        if (error instanceof Refused) {
          setReachable(true);
          set({ path, refused: error.message });
        } else {
          setReachable(false);
          wait = PATIENCE;
        }
      }
      isAsking = false;
      if (!abort.signal.aborted) timer = window.setTimeout(next, wait);
    };
    const seen = () => {
      if (!document.hidden && timer === undefined) void next();
    };
    void next();
    document.addEventListener("visibilitychange", seen);
    return () => {
      abort.abort();
      window.clearTimeout(timer);
      document.removeEventListener("visibilitychange", seen);
    };
  }, [path, every]);
  return answer.path === path ? answer : {};
}

/** How often what the agent remembers is asked for: a step of it takes as long. */
export const STEP_MS = 5000;

export const nodeName = (node: Node): string =>
  "container" in node ? node.container.name : "name" in node ? node.name : node.address;
