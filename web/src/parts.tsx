// What several pages have.

import type { ComponentChildren } from "preact";
import type { Container, End } from "./api.ts";
import { endpoint } from "./format.ts";
import { href } from "./route.ts";
import { strings } from "./strings.ts";
import type { Level } from "./summary.ts";

const SIGNS: Record<Level, string> = { bad: "▲", warn: "●", ok: "✓", idle: "–" };

/** How something is: by sign and word, and by colour. */
export function Badge({ level }: { level: Level }) {
  return <span class={`badge ${level}`}><span aria-hidden="true">{SIGNS[level]}</span> {strings.severity[level]}</span>;
}

export function ContainerLink({ container, query, isClipped }: { container: Container; query: URLSearchParams; isClipped?: boolean }) {
  return <a class={isClipped ? "name clip" : "name"} dir="auto" title={isClipped ? container.name : undefined} href={href(["container", String(container.cgroup_id)], query)}>{container.name}</a>;
}

/** A name that may be long, in one line. */
export const Clipped = ({ name }: { name: string }) => <span class="clip" dir="auto" title={name}>{name}</span>;

/** The far end of a connection. */
export const Peer = ({ peer }: { peer: End }) => {
  const name = peer.container?.name ?? peer.name;
  return <>{name !== undefined && <><Clipped name={name} /> </>}{endpoint(peer)}</>;
};

export function Tile({ label, value, id }: { label: string; value: ComponentChildren; id?: string }) {
  return <div class="tile"><dt>{label}</dt><dd data-id={id}>{value}</dd></div>;
}

/** A table that scrolls by itself where it does not fit, also by keys. */
export function Table({ label, columns, children, numbers = [] }: {
  label: string;
  columns: string[];
  children: ComponentChildren;
  /** Which columns are numbers. */
  numbers?: number[];
}) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={label}>
      <table>
        <thead><tr>{columns.map((column, at) => <th scope="col" class={numbers.includes(at) ? "number" : undefined}>{column}</th>)}</tr></thead>
        <tbody>{children}</tbody>
      </table>
    </div>
  );
}

export function Note({ children }: { children: ComponentChildren }) {
  return <p class="note">{children}</p>;
}

export const Waiting = ({ refused }: { refused?: string }) => (
  <Note>{refused === undefined ? strings.loading : strings.refused(refused)}</Note>
);
