// What the agent answers, as it changes: one stream with the answers to all that is shown, while the page is seen.

import { useEffect, useState } from "preact/hooks";

/** Whether the agent answered when it was asked last; those who show that are told. */
let reachable = true;
const watchers = new Set<(reachable: boolean) => void>();

function setReachable(now: boolean) {
  if (now !== reachable) {
    reachable = now;
    watchers.forEach((tell) => tell(now));
  }
}

export function useReachable(): boolean {
  const [now, set] = useState(reachable);
  useEffect(() => {
    watchers.add(set);
    set(reachable);
    return () => void watchers.delete(set);
  }, []);
  return now;
}

/** A stream that was refused is asked for again after so long; one that broke off, the browser asks for by itself. */
const AGAIN = 2000;

/** Follows a stream: what comes goes to who takes events of that name. Returns what ends it. */
export function follow(url: string, take: Record<string, (data: string) => void>, tell: (isOpen: boolean) => void = () => {}): () => void {
  let source: EventSource;
  let timer: number | undefined;
  const open = () => {
    source = new EventSource(url);
    source.onopen = () => {
      setReachable(true);
      tell(true);
    };
    source.onerror = () => {
      setReachable(false);
      tell(false);
      if (source.readyState === EventSource.CLOSED) timer = window.setTimeout(open, AGAIN);
    };
    for (const [name, taken] of Object.entries(take)) source.addEventListener(name, ({ data }) => taken(data as string));
  };
  open();
  return () => {
    source.close();
    window.clearTimeout(timer);
  };
}

export interface Answer<T> {
  data?: T;
  /** Why there is none. */
  refused?: string;
}

type Take = (answer: Answer<unknown>) => void;

/** Who looks at what. */
const asked = new Map<string, Set<Take>>();
let end: (() => void) | undefined;
let changing: number | undefined;

function told(data: string) {
  const { ask, status, answer } = JSON.parse(data) as { ask: string; status: number; answer: { error?: string } | null };
  const now = status === 200 ? { data: answer } : { refused: answer?.error ?? `HTTP ${status}` };
  asked.get(ask)?.forEach((take) => take(now));
}

function open() {
  changing = undefined;
  end?.();
  end = undefined;
  if (asked.size === 0 || document.hidden) return;
  const query = [...asked.keys()].map((ask) => `ask=${encodeURIComponent(ask)}`).join("&");
  end = follow(`api/v1/live?${query}`, { answer: told });
}

/** Another page has other questions, which come together. */
function change() {
  changing ??= window.setTimeout(open);
}

document.addEventListener("visibilitychange", change);

/** What the agent answers to this, below `api/v1`, now and whenever it changes. What was answered last stays. */
export function useLive<T>(ask: string): Answer<T> {
  const [answer, set] = useState<{ ask?: string; now: Answer<T> }>({ now: {} });
  useEffect(() => {
    const take: Take = (now) => set({ ask, now: now as Answer<T> });
    const all = asked.get(ask) ?? new Set();
    asked.set(ask, all.add(take));
    change();
    return () => {
      all.delete(take);
      if (all.size === 0) asked.delete(ask);
      change();
    };
  }, [ask]);
  return answer.ask === ask ? answer.now : {};
}
