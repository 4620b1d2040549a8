// What the agent costs, what it could not see, and what became of its programs.

import { text as getText, usePoll, type Health, type Program } from "./api.ts";
import * as format from "./format.ts";
import { useRef } from "preact/hooks";
import { Note, Table, Tile, Waiting } from "./parts.tsx";
import { samples, sum, type Sample } from "./samples.ts";
import { strings } from "./strings.ts";

const EVERY = 5000;

const get = async (path: string, signal: AbortSignal) => ({ at: performance.now(), all: samples(await getText(path, signal)) });

/** How much a number of the metrics has grown a second since they were asked for the time before. */
function useRate(name: string, metrics: { at: number; all: Sample[] } | undefined): number | undefined {
  const before = useRef<{ at: number; n: number; rate?: number } | null>(null);
  if (!metrics) return undefined;
  const n = sum(metrics.all, name);
  const last = before.current;
  if (!last || metrics.at !== last.at) {
    // It may have begun anew.
    const rate = last && n >= last.n ? ((n - last.n) / (metrics.at - last.at)) * 1000 : undefined;
    before.current = { at: metrics.at, n, rate };
  }
  return before.current?.rate;
}

export function Agent() {
  const text = strings.agent;
  const { data: health, refused } = usePoll<Health>("api/v1/health", EVERY);
  const { data: programs } = usePoll<{ programs: Program[] }>("api/v1/programs", EVERY);
  const { data: metrics } = usePoll("metrics", EVERY, get);
  const cpu = useRate("tcptide_process_cpu_seconds_total", metrics);
  const of = (name: string) => (metrics ? sum(metrics.all, name) : undefined);
  const shown = (n: number | undefined, format: (n: number) => string) => (n === undefined ? strings.none : format(n));
  return (
    <>
      <h1>{text.title}</h1>
      <p class="about">{text.about}</p>
      {!health ? <Waiting refused={refused} /> : (
        <>
          <dl class="tiles">
            <Tile label={text.cpu} value={shown(cpu, (n) => text.ofCore(format.percent(n)))} id="cpu" />
            <Tile label={text.memory} value={shown(of("tcptide_process_resident_memory_bytes"), format.bytes)} id="memory" />
            <Tile label={text.sockets} value={shown(of("tcptide_walk_sockets"), format.count)} id="sockets" />
            <Tile label={text.walk} value={shown(of("tcptide_walk_duration_seconds"), format.seconds)} />
            <Tile label={text.uptime} value={format.seconds(health.uptime_seconds)} id="uptime" />
            <Tile label={text.version} value={health.version} id="version" />
            <Tile label={text.kernel} value={health.kernel} id="kernel" />
          </dl>
          <section>
            <h2>{text.lost}</h2>
            <dl class="tiles small">
              {Object.entries(health.lost).map(([name, n]) => (
                <Tile key={name} label={text.lostNames[name] ?? name} value={<span class={n > 0 ? "some" : undefined}>{format.count(n)}</span>} id={`lost-${name}`} />
              ))}
            </dl>
          </section>
          <section>
            <h2>{text.runtimes}</h2>
            {health.runtimes.length + (health.kubernetes ? 1 : 0) === 0 ? <Note>{text.noRuntimes}</Note> : (
              <ul>{[...health.runtimes, ...(health.kubernetes ? [health.kubernetes] : [])].map((one) => <li key={one}>{one}</li>)}</ul>
            )}
          </section>
          <section>
            <h2>{text.programs}</h2>
            {programs ? <Programs all={programs.programs} metrics={metrics?.all ?? []} /> : <Waiting />}
          </section>
          <section>
            <h2>{text.links}</h2>
            <ul class="links">
              <li><a href="metrics">{text.metrics}</a></li>
              <li><a href="api/v1/openapi.json">{text.api}</a></li>
              <li><a href="licenses.txt">{text.licenses}</a></li>
            </ul>
          </section>
        </>
      )}
    </>
  );
}

function Programs({ all, metrics }: { all: Program[]; metrics: Sample[] }) {
  const { columns } = strings.agent;
  return (
    <Table label={strings.agent.programs} numbers={[3, 4]}
      columns={[columns.name, columns.hook, columns.status, columns.runs, columns.time, columns.feeds]}>
      {all.map((one) => {
        const labels = { program: one.name };
        const [runs, seconds] = [sum(metrics, "tcptide_program_runs_total", labels), sum(metrics, "tcptide_program_run_seconds_total", labels)];
        const isWrong = one.status === "refused" || one.status === "unsupported";
        return (
          <tr key={one.name} data-program={one.name}>
            <th scope="row">{one.name}</th>
            <td class="fixed">{one.hook}</td>
            <td><span class={isWrong ? "event fail" : "event"}>{one.status}</span>{one.reason && <span class="why">{one.reason}</span>}</td>
            <td class="number">{runs > 0 ? format.count(runs) : strings.none}</td>
            <td class="number">{runs > 0 && seconds > 0 ? `${Math.round((seconds / runs) * 1e9)} ns` : strings.none}</td>
            <td class="wrap">{one.feeds}</td>
          </tr>
        );
      })}
    </Table>
  );
}
