// One container: what it counted over time, and its sockets now.

import type { Connection, Container, Edge, History, Labelled, Metrics, Past } from "./api.ts";
import { Chart, type Series } from "./chart.tsx";
import { EdgeTable } from "./edges.tsx";
import * as format from "./format.ts";
import { Heatmap } from "./heatmap.tsx";
import { quantile } from "./histogram.ts";
import { useLive } from "./live.ts";
import { Why } from "./overview.tsx";
import { Badge, Note, Peer, Table, Tile, Waiting } from "./parts.tsx";
import { range, type Route } from "./route.ts";
import { strings } from "./strings.ts";
import { distribution, labelled, METRICS, single, summarize, total, type Summary } from "./summary.ts";

const MOST_CONNECTIONS = 50;

interface Connections {
  matched: number;
  connections: Connection[];
}

export function ContainerPage({ path, query }: Route) {
  const id = path[1] ?? "";
  const { since, step, count, length } = range(query);
  const cgroup = `cgroup=${encodeURIComponent(id)}`;
  const metrics = [...METRICS, "tcptide_connect_duration_seconds"].join(",");
  const { data, refused } = useLive<History>(`/history?since=${since}&step=${step}&metrics=${metrics}&${cgroup}`);
  const live = useLive<Connections>(`/connections?limit=${MOST_CONNECTIONS}&${cgroup}`);
  const listeners = useLive<{ listeners: Connection[] }>(`/listeners?${cgroup}`);
  const edges = useLive<{ edges: Edge[] }>(`/edges?since=${since}&${cgroup}`);
  if (!data) return <Waiting refused={refused} />;
  // A cgroup is asked for with all below it: this is the one itself.
  const past = data.containers.find((one) => String(one.container.cgroup_id) === id) ?? data.containers[0];
  const known = past?.container ?? live.data?.connections[0]?.container ?? listeners.data?.listeners[0]?.container;
  const text = strings.container;
  return (
    <>
      <h1 dir="auto" class="name">{known?.name ?? id}</h1>
      {known && <Facts container={known} />}
      {past ? <Counted past={past} data={data} count={count} length={length} /> : <Note>{text.gone}</Note>}
      <section>
        <h2>{text.listeners}</h2>
        {listeners.data ? <Listeners all={listeners.data.listeners} /> : <Waiting refused={listeners.refused} />}
      </section>
      <section>
        <h2>{text.edges}</h2>
        {edges.data ? <EdgeTable edges={edges.data.edges} query={query} /> : <Note>{edges.refused ? strings.map.off : strings.loading}</Note>}
      </section>
      <section>
        <h2>{text.connections}</h2>
        {live.data ? <Live answer={live.data} /> : <Waiting refused={live.refused} />}
      </section>
    </>
  );
}

function Facts({ container }: { container: Container }) {
  const text = strings.container;
  const facts: [string, string | undefined][] = [
    [text.runtime, container.runtime], [text.image, container.image], [text.pod, container.pod],
    [text.namespace, container.namespace], [text.id, container.id], [text.cgroup, container.cgroup_path],
  ];
  const known = facts.filter(([, value]) => value && value !== container.name);
  if (known.length === 0) return null;
  return <dl class="facts">{known.map(([name, value]) => <div key={name}><dt>{name}</dt><dd dir="auto">{value}</dd></div>)}</dl>;
}

/** A container over time, in `count` steps of so many seconds. */
function Counted({ past, data, count, length }: { past: Past; data: History; count: number; length: number }) {
  const last = data.steps.length - 1;
  const summary = summarize(past, last);
  // What was before the agent remembers anything is shown as nothing, so that a minute is always as wide.
  const missing = Math.max(count - data.steps.length, 0);
  const times = data.steps.map((step) => Date.parse(step.began) / 1000);
  const first = times[0] ?? 0;
  times.unshift(...Array.from({ length: missing }, (_, at) => first - (missing - at) * length));
  const steps: (Metrics | undefined)[] = Array(times.length).fill(undefined);
  for (const { step, metrics } of past.steps) steps[missing + step] = metrics;
  const seconds: (number | undefined)[] = [...Array(missing).fill(undefined), ...data.steps.map((step) => step.seconds)];
  return (
    <>
      <p class="verdict"><Badge level={summary.level} /> <Why summary={summary} /></p>
      <Numbers summary={summary} seconds={data.steps.reduce((sum, step) => sum + step.seconds, 0)} />
      <States all={summary.states} />
      <div class="charts">
        <Heatmap times={times} steps={steps.map((step) => step && distribution(step, "tcptide_rtt_seconds"))} />
        <Charts times={times} steps={steps} seconds={seconds} summary={summary} />
      </div>
    </>
  );
}

function Numbers({ summary, seconds }: { summary: Summary; seconds: number }) {
  const { columns, opened } = strings.overview;
  const of = Math.max(seconds, 1);
  return (
    <dl class="tiles">
      <Tile label={strings.overview.established} value={format.count(summary.established)} id="established" />
      <Tile label={opened} value={format.count(summary.opened)} id="opened" />
      <Tile label={columns.failed} value={format.count(summary.failed)} id="failed" />
      <Tile label={columns.sent} value={format.rate(summary.sentBytes / of)} id="sent" />
      <Tile label={columns.received} value={format.rate(summary.receivedBytes / of)} id="received" />
      <Tile label={columns.p50} value={format.micros(summary.p50)} id="p50" />
      <Tile label={columns.p99} value={format.micros(summary.p99)} id="p99" />
      <Tile label={columns.retransmits} value={format.percent(summary.again / Math.max(summary.sentSegments, summary.again, 1))} id="again" />
    </dl>
  );
}

function States({ all }: { all: Labelled }) {
  const some = Object.entries(all).filter(([, n]) => n > 0);
  if (some.length === 0) return null;
  return (
    <>
      <h2 class="hidden">{strings.container.states}</h2>
      <dl class="facts">
        {some.map(([state, n]) => <div key={state}><dt>{format.word(state)}</dt><dd data-state={state}>{format.count(n)}</dd></div>)}
      </dl>
    </>
  );
}

function Charts({ times, steps, seconds, summary }: {
  times: number[];
  steps: (Metrics | undefined)[];
  /** `undefined`: nothing is known of that time. */
  seconds: (number | undefined)[];
  summary: Summary;
}) {
  const text = strings.container;
  const perSecond = (of: (metrics: Metrics) => number) => steps.map((step, at) => (seconds[at] === undefined ? null : (step ? of(step) : 0) / Math.max(seconds[at], 0.001)));
  const quantiles = (metric: string): Series[] => [["p50", 0.5], ["p99", 0.99]].map(([label, q], at) => ({
    label: text[label as "p50" | "p99"],
    colour: at + 1,
    values: steps.map((step) => {
      const histogram = step && distribution(step, metric);
      return (histogram && quantile(histogram, q as number)) ?? null;
    }),
  }));
  // Those that there were; without any, the first.
  const byLabel = (metric: string, all: Labelled, scale = 1): Series[] => {
    const labels = Object.keys(all).filter((label) => (all[label] ?? 0) > 0);
    return labels.slice(0, 6).map((label, at) => ({
      label: format.word(label),
      colour: at + 1,
      values: perSecond((metrics) => (labelled(metrics, metric)[label] ?? 0) * scale),
    }));
  };
  const each = `${text.perSecond}`;
  const perSecondText = (n: number) => `${format.number(n)}${each}`;
  const retransmits = byLabel("tcptide_retransmitted_segments_total", summary.retransmits);
  const limits = byLabel("tcptide_limited_seconds_total", summary.limited);
  const failures = byLabel("tcptide_connect_failures_total", summary.failures);
  return (
    <>
      <Chart title={text.quantiles} times={times} series={quantiles("tcptide_rtt_seconds")} format={format.micros} />
      <Chart title={text.connect} times={times} series={quantiles("tcptide_connect_duration_seconds")} format={format.micros} />
      <Chart title={text.traffic} times={times} format={format.rate} isBinary series={[
        { label: strings.overview.columns.sent, colour: 1, values: perSecond((m) => single(m, "tcptide_sent_bytes_total")) },
        { label: strings.overview.columns.received, colour: 2, values: perSecond((m) => single(m, "tcptide_received_bytes_total")) },
      ]} />
      <Chart title={text.opened} times={times} format={perSecondText} series={[
        { label: strings.overview.opened, colour: 1, values: perSecond((m) => total(labelled(m, "tcptide_opened_total"))) },
        ...failures.map((one, at) => ({ ...one, colour: Math.min(at + 2, 6) })),
      ]} />
      {retransmits.length > 0 && <Chart title={text.retransmits} times={times} series={retransmits} format={perSecondText} stacked />}
      {limits.length > 0 && <Chart title={text.limits} times={times} series={limits} format={(n) => `${format.number(n)} s/s`} stacked />}
    </>
  );
}

function Listeners({ all }: { all: Connection[] }) {
  const text = strings.container;
  if (all.length === 0) return <Note>{text.noListeners}</Note>;
  return (
    <Table label={text.listeners} columns={[text.local, text.process, text.queue, text.limit, text.drops]} numbers={[2, 3, 4]}>
      {all.map((one) => (
        <tr key={one.cookie}>
          <th scope="row">{format.endpoint(one.local)}</th>
          <td>{process(one)}</td>
          <td class="number">{one.queues?.accept ?? strings.none}</td>
          <td class="number">{one.queues?.limit ?? strings.none}</td>
          <td class="number">{one.queues?.drops ?? strings.none}</td>
        </tr>
      ))}
    </Table>
  );
}

const process = ({ process }: Connection) => (process ? `${process.pid}/${process.comm}` : strings.none);

function Live({ answer }: { answer: Connections }) {
  const text = strings.container;
  if (answer.connections.length === 0) return <Note>{text.noConnections}</Note>;
  const columns = [text.local, text.peer, text.state, text.process, text.rtt1, text.sent, text.received, text.again];
  return (
    <>
      <Table label={text.connections} columns={columns} numbers={[4, 5, 6, 7]}>
        {answer.connections.map((one) => (
          <tr key={one.cookie} data-cookie={one.cookie}>
            <th scope="row">{format.endpoint(one.local)}</th>
            <td><Peer peer={one.peer} /></td>
            <td>{one.state ?? strings.none}</td>
            <td>{process(one)}</td>
            <td class="number">{format.micros(one.rtt?.srtt_us)}</td>
            <td class="number">{format.bytes((one.before?.sent_bytes ?? 0) + (one.sent_bytes ?? 0))}</td>
            <td class="number">{format.bytes((one.before?.received_bytes ?? 0) + (one.received_bytes ?? 0))}</td>
            <td class="number">{one.retransmits?.total ?? strings.none}</td>
          </tr>
        ))}
      </Table>
      {answer.matched > answer.connections.length && <Note>{text.connectionsMore(answer.connections.length, answer.matched)}</Note>}
    </>
  );
}
