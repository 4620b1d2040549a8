// Connections as they open, fail and close. The kernel sends events only while somebody follows them: while this page is open.

import { useEffect, useRef, useState } from "preact/hooks";
import type { Connection } from "./api.ts";
import * as format from "./format.ts";
import { follow } from "./live.ts";
import { ContainerLink, Note, Peer, Table } from "./parts.tsx";
import type { Route } from "./route.ts";
import { strings } from "./strings.ts";

const KINDS = ["open", "established", "close", "fail"];
/** As many are shown. */
const MOST = 300;
/** How often what came is shown. */
const EVERY = 250;

type State = "waiting" | "follow" | "paused";
type Numbered = Connection & { at: number };

function useEvents(url: string | undefined) {
  const [state, setState] = useState<State>("waiting");
  const [events, setEvents] = useState<Numbered[]>([]);
  const [lost, setLost] = useState(0);
  const number = useRef(0);
  useEffect(() => {
    if (url === undefined) return setState("paused");
    let came: Numbered[] = [];
    setState("waiting");
    const end = follow(url, {
      message: (data) => came.push({ ...(JSON.parse(data) as Connection), at: (number.current += 1) }),
      lost: (data) => setLost((sum) => sum + Number(data)),
    }, (isOpen) => setState(isOpen ? "follow" : "waiting"));
    const showing = window.setInterval(() => {
      if (came.length === 0) return;
      const news = came.slice(-MOST).reverse();
      came = [];
      setEvents((shown) => [...news, ...shown].slice(0, MOST));
    }, EVERY);
    return () => {
      end();
      window.clearInterval(showing);
    };
  }, [url]);
  return { state, events, lost, count: number.current };
}

export function Events({ query }: Route) {
  const text = strings.events;
  const [kinds, setKinds] = useState(KINDS);
  const [container, setContainer] = useState(query.get("container") ?? "");
  const [wanted, want] = useState(container);
  const [isPaused, pause] = useState(false);
  const filter = wanted && `&container=${encodeURIComponent(wanted)}`;
  const { state, events, lost, count } = useEvents(isPaused || kinds.length === 0 ? undefined : `api/v1/events?events=${kinds.join(",")}${filter}`);
  const { columns } = text;
  return (
    <>
      <h1>{text.title}</h1>
      <p class="about">{text.about}</p>
      <form class="controls" onSubmit={(event) => { event.preventDefault(); want(container.trim()); }}>
        <input class="search" type="search" placeholder={text.container} aria-label={text.container} value={container}
          onInput={(event) => setContainer(event.currentTarget.value)} onChange={(event) => want(event.currentTarget.value.trim())} />
        <fieldset>
          <legend class="hidden">{text.kinds}</legend>
          {KINDS.map((kind) => (
            <label key={kind}>
              <input type="checkbox" checked={kinds.includes(kind)}
                onChange={() => setKinds(KINDS.filter((one) => kinds.includes(one) !== (one === kind)))} />
              {text.kind[kind]}
            </label>
          ))}
        </fieldset>
        <button type="button" onClick={() => pause(!isPaused)}>{isPaused ? text.resume : text.pause}</button>
        <span role="status" class={`following ${state}`}>{{ follow: text.follow, waiting: text.waiting, paused: text.paused }[state]}</span>
        <span class="muted">{text.count(format.count(count))}</span>
      </form>
      {lost > 0 && <Note>{text.lost(format.count(lost))}</Note>}
      {events.length === 0 ? <Note>{text.empty}</Note> : (
        <Table label={text.title} numbers={[5, 6]}
          columns={[columns.time, columns.event, columns.container, columns.local, columns.peer, columns.took, columns.carried, columns.result]}>
          {events.map((one) => (
            <tr key={one.at}>
              <td class="fixed">{one.time && format.clock(new Date(one.time), true)}</td>
              <td><span class={`event ${one.event}`}>{text.kind[one.event ?? ""] ?? one.event}</span></td>
              <th scope="row"><ContainerLink container={one.container} query={query} isClipped /></th>
              <td class="fixed">{format.endpoint(one.local)}</td>
              <td class="fixed"><Peer peer={one.peer} /></td>
              <td class="number">{format.micros(one.event === "close" ? one.duration_us : one.connect_us)}</td>
              <td class="number">{one.event === "close" ? format.bytes((one.sent_bytes ?? 0) + (one.received_bytes ?? 0)) : strings.none}</td>
              <td>{one.close?.reason ? format.word(one.close.reason) : strings.none}</td>
            </tr>
          ))}
        </Table>
      )}
    </>
  );
}
