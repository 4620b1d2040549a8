// All containers, the worst first, with the reason in words.

import { useMemo, useState } from "preact/hooks";
import type { History, Past } from "./api.ts";
import { Spark } from "./chart.tsx";
import * as format from "./format.ts";
import { quantile } from "./histogram.ts";
import { useLive } from "./live.ts";
import { Badge, ContainerLink, Note, Table, Tile, Waiting } from "./parts.tsx";
import { range, type Route } from "./route.ts";
import { strings } from "./strings.ts";
import { compare, distribution, METRICS, summarize, type Summary } from "./summary.ts";

const MOST = 200;
/** How many points a small line has. */
const POINTS = { "5m": "15s", "15m": "45s", "1h": "3m" } as Record<string, string>;

export function Overview({ query }: Route) {
  const { since, words } = range(query);
  const path = `/history?since=${since}&step=${POINTS[since]}&limit=${MOST}&metrics=${METRICS.join(",")}`;
  const { data, refused } = useLive<History>(path);
  const [wanted, want] = useState("");
  const rows = useMemo(() => summaries(data), [data]);
  const text = strings.overview;
  const shown = rows.filter(([past]) => past.container.name.toLowerCase().includes(wanted.toLowerCase()));
  const seconds = data?.steps.reduce((sum, step) => sum + step.seconds, 0) ?? 0;
  const sum = (of: (summary: Summary) => number) => rows.reduce((all, [, summary]) => all + of(summary), 0);
  return (
    <>
      <h1>{text.title}</h1>
      <p class="about">{text.about(words)}</p>
      {!data ? <Waiting refused={refused} /> : (
        <>
          <dl class="tiles">
            <Tile label={text.containers} value={format.count(data.matched)} id="containers" />
            <Tile label={text.established} value={format.count(sum((one) => one.established))} id="established" />
            <Tile label={text.opened} value={format.count(sum((one) => one.opened))} id="opened" />
            <Tile label={text.failing} value={format.count(sum((one) => one.failed))} id="failed" />
            <Tile label={text.columns.sent} value={format.rate(sum((one) => one.sentBytes) / Math.max(seconds, 1))} id="sent" />
          </dl>
          <input class="search" type="search" placeholder={strings.filter} aria-label={strings.filter} value={wanted}
            onInput={(event) => want(event.currentTarget.value)} />
          {shown.length === 0 ? <Note>{rows.length === 0 ? text.empty : text.noMatch}</Note> : (
            <Rows rows={shown} steps={data.steps.length} seconds={seconds} query={query} />
          )}
          {data.matched > rows.length && <Note>{text.more(rows.length, data.matched)}</Note>}
        </>
      )}
    </>
  );
}

function summaries(data: History | undefined): [Past, Summary][] {
  const last = (data?.steps.length ?? 0) - 1;
  const all = (data?.containers ?? []).map((past): [Past, Summary] => [past, summarize(past, last)]);
  return all.sort((a, b) => compare(a[1], b[1]));
}

function Rows({ rows, steps, seconds, query }: {
  rows: [Past, Summary][];
  steps: number;
  seconds: number;
  query: URLSearchParams;
}) {
  const { columns } = strings.overview;
  const order = [
    columns.state, columns.container, columns.connections, columns.sent, columns.received, columns.p50, columns.p99,
    columns.trend, columns.retransmits, columns.failed,
  ];
  return (
    <Table label={strings.overview.title} columns={order} numbers={[2, 3, 4, 5, 6, 8, 9]}>
      {rows.map(([past, one]) => (
        <tr key={past.container.cgroup_id} data-cgroup={past.container.cgroup_id}>
          <td><Badge level={one.level} /></td>
          <th scope="row">
            <ContainerLink container={past.container} query={query} />
            <Why summary={one} />
          </th>
          <td class="number" data-of="connections">{format.count(one.established)}</td>
          <td class="number" data-of="sent">{format.rate(one.sentBytes / Math.max(seconds, 1))}</td>
          <td class="number" data-of="received">{format.rate(one.receivedBytes / Math.max(seconds, 1))}</td>
          <td class="number" data-of="p50">{format.micros(one.p50)}</td>
          <td class="number" data-of="p99">{format.micros(one.p99)}</td>
          <td><Trend past={past} steps={steps} /></td>
          <td class="number" data-of="again">{format.percent(one.again / Math.max(one.sentSegments, one.again, 1))}</td>
          <td class="number" data-of="failed">{format.count(one.failed)}</td>
        </tr>
      ))}
    </Table>
  );
}

export function Why({ summary }: { summary: Summary }) {
  const { reasons } = strings;
  if (summary.reasons.length === 0) return <span class="why">{summary.level === "idle" ? reasons.idle : reasons.fine}</span>;
  return <span class="why">{summary.reasons.map((reason) => reason.text).join("; ")}</span>;
}

function Trend({ past, steps }: { past: Past; steps: number }) {
  const values: (number | null)[] = Array(steps).fill(null);
  for (const { step, metrics } of past.steps) {
    const rtt = distribution(metrics, "tcptide_rtt_seconds");
    values[step] = (rtt && quantile(rtt, 0.99)) ?? null;
  }
  const known = values.filter((n): n is number => n !== null);
  return <Spark values={values} label={strings.overview.trend(format.micros(Math.min(...known)), format.micros(Math.max(...known)))} />;
}
