// Where one is: `#/container/1234?range=15m` is the whole state of the page, so that it can be sent to somebody.

import { useEffect, useState } from "preact/hooks";
import { strings } from "./strings.ts";

export interface Route {
  /** Such as `container` and a cgroup's id. */
  path: string[];
  query: URLSearchParams;
}

export function parse(hash: string): Route {
  const [path, query] = hash.replace(/^#\/?/, "").split("?", 2);
  return { path: (path ?? "").split("/").filter(Boolean).map(decode), query: new URLSearchParams(query ?? "") };
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** A link that keeps what is chosen: a value of `undefined` leaves that out. */
export function href(path: string[], query: URLSearchParams, change: Record<string, string | undefined> = {}): string {
  const kept = new URLSearchParams();
  const range = query.get("range");
  if (range !== null) kept.set("range", range);
  for (const [name, value] of Object.entries(change)) value === undefined ? kept.delete(name) : kept.set(name, value);
  const text = kept.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${text && `?${text}`}`;
}

export function useRoute(): Route {
  const [route, set] = useState(() => parse(location.hash));
  useEffect(() => {
    const changed = () => set(parse(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

/** So many steps of so many seconds. */
const STEPS: Record<string, [number, number]> = { "5m": [60, 5], "15m": [60, 15], "1h": [60, 60] };

/** The time that is looked at, and the steps in which it is shown. */
export function range(query: URLSearchParams): { since: string; step: string; count: number; length: number; words: string } {
  const asked = query.get("range") ?? "";
  const since = asked in STEPS ? asked : "5m";
  const [count, length] = STEPS[since] ?? [60, 5];
  return { since, step: `${length}s`, count, length, words: strings.ranges[since] ?? since };
}
