// The service map: who talks to whom, as a picture and as a table.

import { useMemo, useRef, useState } from "preact/hooks";
import { STEP_MS, usePoll, type Edge } from "./api.ts";
import { EdgeTable } from "./edges.tsx";
import * as format from "./format.ts";
import { graph, neighbours, width, type Graph, type Line, type Point } from "./layout.ts";
import { Note, Waiting } from "./parts.tsx";
import { href, range, type Route } from "./route.ts";
import { strings } from "./strings.ts";

const MOST_EDGES = 1000;
/** So many names are readable. */
const MOST_NAMES = 60;
const MOST_LETTERS = 26;
const RADIUS = 9;

export function MapPage({ query }: Route) {
  const { since, words } = range(query);
  const { data, refused } = usePoll<{ edges: Edge[] }>(`api/v1/edges?since=${since}&max_edges=${MOST_EDGES}`, STEP_MS);
  const places = useRef(new Map<string, Point>());
  const drawn = useMemo(() => {
    if (!data) return undefined;
    const made = graph(data.edges, places.current);
    places.current = made.points;
    return made;
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
  // Where there is no room for all, the names of those that most talk to.
  const named = new Set([...seen].sort((a, b) => b.degree - a.degree).slice(0, MOST_NAMES));
  const xs = seen.map((point) => point.x);
  const ys = seen.map((point) => point.y);
  const [left, top] = [Math.min(...xs) - 110, Math.min(...ys) - 50];
  const size = [Math.max(Math.max(...xs) + 110 - left, 420), Math.max(Math.max(...ys) + 50 - top, 240)];
  const lines = graph.lines.filter(({ from, to }) => !near || (near.has(from) && near.has(to) && (from === focus || to === focus)));
  return (
    <div class="map">
      <svg viewBox={`${left} ${top} ${size[0]} ${size[1]}`} role="group" aria-label={strings.map.label(seen.length, lines.length)}>
        <defs>
          <marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">
            <path d="M0 0L8 4L0 8z" fill="context-stroke" />
          </marker>
        </defs>
        {lines.map((line) => <Drawn key={`${line.from} ${line.to}`} line={line} graph={graph} isFaint={wanted !== "" && !near} />)}
        {seen.map((point) => (
          <a key={point.id} href={href(["map"], query, { focus: point.id })} aria-label={strings.map.node(spoken(point.name), point.degree)}
            class={`${point.cgroup === undefined ? "elsewhere" : "node"}${isSeen(point) ? "" : " faint"}${point.id === focus ? " focus" : ""}`}>
            <g transform={`translate(${point.x} ${point.y})`}>
            <circle r={RADIUS + Math.min(point.degree, 12) / 2} />
            {(named.has(point) || isFound(point)) && <text y={RADIUS + 19}>{short(point.name)}</text>}
            <title>{point.name}</title>
            </g>
          </a>
        ))}
      </svg>
    </div>
  );
}

/** What tells paths apart is at their ends. */
const short = (name: string) => {
  const letters = [...name];
  if (letters.length <= MOST_LETTERS) return name;
  return name.startsWith("/") ? `…${letters.slice(1 - MOST_LETTERS).join("")}` : `${letters.slice(0, MOST_LETTERS - 1).join("")}…`;
};

/** What is seen is said, too, so that who speaks to the page is understood. */
const spoken = (name: string) => (short(name) === name ? name : `${short(name)} (${name})`);

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
  const end = (length - RADIUS - Math.min(to.degree, 12) / 2 - 4) / length;
  const [mx, my] = [from.x + dx / 2 - (dy / length) * 12, from.y + dy / 2 + (dx / length) * 12];
  return (
    <path {...look} d={`M${from.x} ${from.y}Q${mx} ${my} ${from.x + dx * end} ${from.y + dy * end}`} marker-end="url(#arrow)">
      <title>{title}</title>
    </path>
  );
}
