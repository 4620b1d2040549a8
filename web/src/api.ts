// What the agent answers.

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
  cost: { cpu_seconds: number; resident_bytes?: number; walk_sockets?: number; walk_seconds?: number };
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
  runs?: number;
  run_seconds?: number;
}

export const nodeName = (node: Node): string =>
  "container" in node ? node.container.name : "name" in node ? node.name : node.address;
