// What the agent costs, what it could not see, and what became of its programs.

import { useRef } from "preact/hooks";
import type { Health, Program } from "./api.ts";
import * as format from "./format.ts";
import { useLive } from "./live.ts";
import { Note, Table, Tile, Waiting } from "./parts.tsx";
import { strings } from "./strings.ts";

/** How much of a core it has taken since the answer before; at first, since its start. */
function useCpu(health: Health | undefined): number | undefined {
  const before = useRef({ uptime: 0, cpu: 0, rate: 0 });
  if (!health) return undefined;
  const last = before.current;
  const [uptime, cpu] = [health.uptime_seconds, health.cost.cpu_seconds];
  if (uptime !== last.uptime) {
    // It may have begun anew.
    const rate = uptime > last.uptime ? (cpu - last.cpu) / (uptime - last.uptime) : cpu / uptime;
    before.current = { uptime, cpu, rate };
  }
  return before.current.rate;
}

export function Agent() {
  const text = strings.agent;
  const { data: health, refused } = useLive<Health>("/health");
  const { data: programs } = useLive<{ programs: Program[] }>("/programs");
  const cpu = useCpu(health);
  const shown = (n: number | undefined, format: (n: number) => string) => (n === undefined ? strings.none : format(n));
  return (
    <>
      <h1>{text.title}</h1>
      <p class="about">{text.about}</p>
      {!health ? <Waiting refused={refused} /> : (
        <>
          <dl class="tiles">
            <Tile label={text.cpu} value={shown(cpu, (n) => text.ofCore(format.percent(n)))} id="cpu" />
            <Tile label={text.memory} value={shown(health.cost.resident_bytes, format.bytes)} id="memory" />
            <Tile label={text.sockets} value={shown(health.cost.walk_sockets, format.count)} id="sockets" />
            <Tile label={text.walk} value={shown(health.cost.walk_seconds, format.seconds)} />
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
            {programs ? <Programs all={programs.programs} /> : <Waiting />}
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

function Programs({ all }: { all: Program[] }) {
  const { columns } = strings.agent;
  return (
    <Table label={strings.agent.programs} numbers={[3, 4]}
      columns={[columns.name, columns.hook, columns.status, columns.runs, columns.time, columns.feeds]}>
      {all.map((one) => {
        const [runs, seconds] = [one.runs ?? 0, one.run_seconds ?? 0];
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
