// The page's frame: which page is shown, of what time, in which colours, and whether the agent answers.

import { render } from "preact";
import { useEffect, useRef } from "preact/hooks";
import "uplot/dist/uPlot.min.css";
import "./style.css";
import { Agent } from "./agent.tsx";
import { ContainerPage } from "./container.tsx";
import { Events } from "./events.tsx";
import { useReachable } from "./live.ts";
import { MapPage } from "./map.tsx";
import { Overview } from "./overview.tsx";
import { href, range, useRoute, type Route } from "./route.ts";
import { strings } from "./strings.ts";
import { ThemeSwitch } from "./theme.tsx";

const PAGES: [keyof typeof strings.pages, string[]][] = [["overview", []], ["map", ["map"]], ["events", ["events"]], ["agent", ["agent"]]];

function App() {
  const route = useRoute();
  const isReachable = useReachable();
  const main = useRef<HTMLElement>(null);
  const [page] = route.path;
  const where = route.path.join("/");
  const isFirst = useRef(true);
  useEffect(() => {
    const title = PAGES.find(([, path]) => path.join("/") === where)?.[0];
    document.title = `${title ? strings.pages[title] : strings.pages.overview} – ${strings.title}`;
    // Who does not see it is told that another page is shown.
    if (!isFirst.current) main.current?.focus();
    isFirst.current = false;
    scrollTo(0, 0);
  }, [where]);
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); main.current?.focus(); }}>{strings.skip}</a>
      <header>
        <a class="logo" href={href([], route.query)}>{strings.title}</a>
        <nav aria-label={strings.nav}>
          {PAGES.map(([name, path]) => (
            <a key={name} href={href(path, route.query)} aria-current={(path[0] ?? "") === (page ?? "") ? "page" : undefined}>{strings.pages[name]}</a>
          ))}
        </nav>
        <Range route={route} />
        <ThemeSwitch />
      </header>
      <div role="status" class="reachable">{isReachable ? "" : <p class="banner">{strings.lost}</p>}</div>
      <main id="main" ref={main} tabIndex={-1}><Page route={route} /></main>
    </>
  );
}

function Page({ route }: { route: Route }) {
  switch (route.path[0]) {
    case "container": return <ContainerPage key={route.path[1]} {...route} />;
    case "map": return <MapPage {...route} />;
    case "events": return <Events {...route} />;
    case "agent": return <Agent />;
    default: return <Overview {...route} />;
  }
}

function Range({ route }: { route: Route }) {
  const { since } = range(route.query);
  return (
    <label class="choice">
      <span class="hidden">{strings.range}</span>
      <select value={since} onChange={(event) => { location.hash = href(route.path, route.query, { range: event.currentTarget.value }); }}>
        {Object.entries(strings.ranges).map(([value, text]) => <option value={value}>{text}</option>)}
      </select>
    </label>
  );
}

const place = document.getElementById("app");
if (place) render(<App />, place);
