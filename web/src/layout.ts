// Where the nodes of a map are: those that talk to each other close together, and each where it was before.

import { forceCollide, forceLink, forceManyBody, forceSimulation, forceX, forceY, type SimulationNodeDatum } from "d3-force";
import { nodeName, type Edge, type Node } from "./api.ts";
import { again, level } from "./edges.tsx";
import { LEVELS, type Level } from "./summary.ts";

export interface Point extends SimulationNodeDatum {
  id: string;
  name: string;
  cgroup?: number;
  /** How many others it talks to. */
  degree: number;
  x: number;
  y: number;
}

/** All connections between two, in one direction. */
export interface Line {
  from: string;
  to: string;
  ports: number[];
  /** Bytes a second, both ways. */
  rate: number;
  connections: number;
  failed: number;
  again: number;
  level: Level;
}

export interface Graph {
  points: Map<string, Point>;
  lines: Line[];
}

const TICKS = 250;

const id = (node: Node) => ("container" in node ? String(node.container.cgroup_id) : nodeName(node));

/** What is to be drawn; points keep their places in `before`. */
export function graph(edges: Edge[], before: Map<string, Point>): Graph {
  const points = new Map<string, Point>();
  const lines = new Map<string, Line>();
  const point = (node: Node) => {
    const key = id(node);
    const known = points.get(key);
    if (known) return known;
    const old = before.get(key);
    const made: Point = {
      id: key, name: nodeName(node), degree: 0, x: old?.x ?? NaN, y: old?.y ?? NaN,
      cgroup: "container" in node ? node.container.cgroup_id : undefined,
    };
    points.set(key, made);
    return made;
  };
  for (const edge of edges) {
    const [from, to] = [point(edge.client).id, point(edge.server).id];
    const key = `${from} ${to}`;
    const line = lines.get(key) ?? { from, to, ports: [], rate: 0, connections: 0, failed: 0, again: 0, level: "ok" };
    if (edge.port !== undefined && !line.ports.includes(edge.port)) line.ports.push(edge.port);
    line.rate += (edge.rates?.sent_bytes ?? 0) + (edge.rates?.received_bytes ?? 0);
    line.connections += edge.connections;
    line.failed += edge.failed ?? 0;
    line.again += again(edge);
    line.level = LEVELS[Math.min(LEVELS.indexOf(line.level), LEVELS.indexOf(level(edge)))]!;
    lines.set(key, line);
  }
  for (const { from, to } of lines.values()) {
    if (from === to) continue;
    points.get(from)!.degree += 1;
    points.get(to)!.degree += 1;
  }
  const result = { points, lines: [...lines.values()] };
  if ([...points.keys()].some((key) => !before.has(key))) place(result);
  return result;
}

function place({ points, lines }: Graph) {
  const nodes = [...points.values()];
  for (const node of nodes) {
    // What has no place yet gets one from the simulation.
    if (Number.isNaN(node.x)) Object.assign(node, { x: undefined, y: undefined });
  }
  const links = lines.filter(({ from, to }) => from !== to).map(({ from, to }) => ({ source: from, target: to }));
  const simulation = forceSimulation(nodes)
    .force("link", forceLink<Point, { source: string; target: string }>(links).id((node) => node.id).distance(90))
    .force("charge", forceManyBody().strength(-320).distanceMax(600))
    .force("collide", forceCollide(34))
    .force("x", forceX(0).strength(0.045))
    .force("y", forceY(0).strength(0.13))
    .stop();
  simulation.tick(TICKS);
}

/** A node and whom it talks to. */
export function neighbours({ lines }: Graph, focus: string): Set<string> {
  const found = new Set([focus]);
  for (const { from, to } of lines) {
    if (from === focus) found.add(to);
    if (to === focus) found.add(from);
  }
  return found;
}

type Box = [left: number, top: number, right: number, bottom: number];

/** The names that have room, of those that talk to most first; none lies on another one, or on a point. */
export function roomFor(points: Point[], radius: (point: Point) => number, label: (point: Point) => { width: number; height: number; below: number }): Set<Point> {
  const boxes = points.map((point): Box => [point.x - radius(point), point.y - radius(point), point.x + radius(point), point.y + radius(point)]);
  const named = new Set<Point>();
  for (const point of [...points].sort((a, b) => b.degree - a.degree)) {
    const { width, height, below } = label(point);
    const box: Box = [point.x - width / 2, point.y + below, point.x + width / 2, point.y + below + height];
    if (boxes.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
    boxes.push(box);
    named.add(point);
  }
  return named;
}

/** How wide a line is: by the logarithm of its rate. */
export const width = (rate: number) => 1.5 + Math.log10(1 + rate / 100) * 1.1;
