// The service map: who talks to whom, as a picture and as a table.

import { useMemo, useRef, useState } from "preact/hooks";
import type { Edge } from "./api.ts";
import { EdgeTable } from "./edges.tsx";
import * as format from "./format.ts";
import { graph, neighbours, roomFor, width, type Graph, type Line, type Point } from "./layout.ts";
import { useLive } from "./live.ts";
import { Note, Waiting } from "./parts.tsx";
import { href, range, type Route } from "./route.ts";
import { strings } from "./strings.ts";

const MOST_EDGES = 1000;
/** What is seen at least, of the plane that they are placed on. */
const LEAST = { width: 800, height: 400 };
/** Pixels that it has on a usual screen. */
const SCREEN = { width: 1240, height: 610 };
/** Screens are wider than high. */
const STRETCH = 1.6;
const MOST_LETTERS = 26;
const RADIUS = 9;

export function MapPage({ query }: Route) {
  const { since, words } = range(query);
  const { data, refused } = useLive<{ edges: Edge[] }>(`/edges?since=${since}&max_edges=${MOST_EDGES}`);
  const places = useRef(new Map<string, Point>());
  const drawn = useMemo(() => {
    if (!data) return undefined;
    const made = graph(data.edges, places.current);
    places.current = made.points;
    const points = [...made.points.values()].map((point): [string, Point] => [point.id, { ...point, x: point.x * STRETCH }]);
    return { lines: made.lines, points: new Map(points) };
  }, [data]);
  const [wanted, want] = useState("");
  const text = strings.map;
  const focus = query.get("focus") ?? undefined;
  const focused = focus === undefined ? undefined : drawn?.points.get(focus);
  return (
    <>
      <h1>{text.title}</h1>
      <p class="about">{text.about(words)}</p>
      {!data || !drawn ? (refused?.includes("--edges") ? <Note>{text.off}</Note> : <Waiting refused={refused} />) : (
        drawn.points.size === 0 ? <Note>{text.empty}</Note> : (
          <>
            <div class="controls">
              <input class="search" type="search" placeholder={text.search} aria-label={text.search} value={wanted}
                onInput={(event) => want(event.currentTarget.value)} />
              {focused && <span dir="auto">{text.focused(focused.name)}</span>}
              {focus !== undefined && <a class="button" href={href(["map"], query)}>{text.clear}</a>}
              <ul class="legend">
                {(["ok", "warn", "bad"] as const).map((level) => <li key={level} class={level}>{text.legend[level]}</li>)}
              </ul>
            </div>
            <Picture graph={drawn} focus={focused?.id} wanted={wanted.toLowerCase()} query={query} />
            <h2>{text.table}</h2>
            <EdgeTable edges={shownEdges(data.edges, focused)} query={query} />
          </>
        )
      )}
    </>
  );
}

function shownEdges(edges: Edge[], focused: Point | undefined): Edge[] {
  if (focused?.cgroup === undefined) return edges;
  const is = (node: Edge["client"]) => "container" in node && node.container.cgroup_id === focused.cgroup;
  return edges.filter((edge) => is(edge.client) || is(edge.server));
}

function Picture({ graph, focus, wanted, query }: { graph: Graph; focus?: string; wanted: string; query: URLSearchParams }) {
  const near = focus === undefined ? undefined : neighbours(graph, focus);
  const all = [...graph.points.values()];
  const isFound = (point: Point) => wanted !== "" && point.name.toLowerCase().includes(wanted);
  const isSeen = (point: Point) => (near ? near.has(point.id) : wanted === "" || isFound(point));
  const seen = all.filter((point) => !near || near.has(point.id));
  const xs = seen.map((point) => point.x);
  const ys = seen.map((point) => point.y);
  const [left, top] = [Math.min(...xs) - 110, Math.min(...ys) - 50];
  const [right, bottom] = [Math.max(...xs) + 110, Math.max(...ys) + 60];
  // Few are not drawn larger than they are, and stay in the middle.
  const size = { width: Math.max(right - left, LEAST.width), height: Math.max(bottom - top, LEAST.height) };
  const corner = [(left + right - size.width) / 2, (top + bottom - size.height) / 2];
  // Names are as large in a large map as in a small one.
  const scale = Math.max(size.width / SCREEN.width, size.height / SCREEN.height);
  const named = roomFor(seen, radius, (point) => ({ width: short(point.name).length * 7 * scale, height: 15 * scale, below: below(point) }));
  const lines = graph.lines.filter(({ from, to }) => !near || (near.has(from) && near.has(to) && (from === focus || to === focus)));
  return (
    <div class="map">
      <svg viewBox={`${corner[0]} ${corner[1]} ${size.width} ${size.height}`} role="group" aria-label={strings.map.label(seen.length, lines.length)}>
        <defs>
          <marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">
            <path d="M0 0L8 4L0 8z" fill="context-stroke" />
          </marker>
        </defs>
        {lines.map((line) => <Drawn key={`${line.from} ${line.to}`} line={line} graph={graph} isFaint={wanted !== "" && !near} />)}
        {seen.map((point) => (
          <a key={point.id} href={href(["map"], query, { focus: point.id })} aria-label={strings.map.node(point.name, point.degree)}
            class={`${point.cgroup === undefined ? "elsewhere" : "node"}${isSeen(point) ? "" : " faint"}${point.id === focus ? " focus" : ""}`}>
            <g transform={`translate(${point.x} ${point.y})`}>
            <circle r={radius(point)} />
            <title>{point.name}</title>
            </g>
          </a>
        ))}
        <g class="names" aria-hidden="true" font-size={13 * scale} stroke-width={4 * scale}>
          {seen.filter((point) => named.has(point) || isFound(point)).map((point) => (
            <text key={point.id} x={point.x} y={point.y + below(point) + 12 * scale} class={isSeen(point) ? undefined : "faint"}>{short(point.name)}</text>
          ))}
        </g>
      </svg>
    </div>
  );
}

const radius = (point: Point) => RADIUS + Math.min(point.degree, 12) / 2;
/** Where a name begins. */
const below = (point: Point) => radius(point) + 2;

/** What tells paths apart is at their ends. */
const short = (name: string) => {
  const letters = [...name];
  if (letters.length <= MOST_LETTERS) return name;
  return name.startsWith("/") ? `…${letters.slice(1 - MOST_LETTERS).join("")}` : `${letters.slice(0, MOST_LETTERS - 1).join("")}…`;
};

function Drawn({ line, graph, isFaint }: { line: Line; graph: Graph; isFaint: boolean }) {
  const [from, to] = [graph.points.get(line.from), graph.points.get(line.to)];
  if (!from || !to) return null;
  const { map } = strings;
  const name = `${from.name} → ${to.name}${line.ports.length ? ` :${line.ports.slice(0, 5).join(", ")}` : ""}`;
  const title = `${name}\n${format.rate(line.rate)}, ${map.connections}: ${format.count(line.connections)}, ${map.failed}: ${format.count(line.failed)}, ${map.again}: ${format.count(line.again)}`;
  const look = { class: `edge ${line.level}${isFaint ? " faint" : ""}`, "stroke-width": width(line.rate).toFixed(1) };
  if (from === to) return <circle {...look} cx={from.x} cy={from.y - 16} r="12"><title>{title}</title></circle>;
  // A little to the side, so that there is room for the way back.
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const length = Math.hypot(dx, dy) || 1;
  const end = (length - radius(to) - 4) / length;
  const [mx, my] = [from.x + dx / 2 - (dy / length) * 12, from.y + dy / 2 + (dx / length) * 12];
  return (
    <path {...look} d={`M${from.x} ${from.y}Q${mx} ${my} ${from.x + dx * end} ${from.y + dy * end}`} marker-end="url(#arrow)">
      <title>{title}</title>
    </path>
  );
}
