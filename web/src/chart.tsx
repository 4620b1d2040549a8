// Series over time, drawn by uPlot, with a sentence for who does not see them.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { clock } from "./format.ts";
import { strings } from "./strings.ts";
import { useColours } from "./theme.tsx";

export interface Series {
  label: string;
  /** One for each time; `null`: not measured then. */
  values: (number | null)[];
  /** Which colour, from 1. */
  colour: number;
}

interface Props {
  title: string;
  /** Unix seconds. */
  times: number[];
  series: Series[];
  format: (n: number) => string;
  /** Grid lines at powers of two, as bytes have them. */
  isBinary?: boolean;
  /** One on top of the other. */
  stacked?: boolean;
}

const HEIGHT = 160;
const BINARY = Array.from({ length: 50 }, (_, at) => 2 ** at);

export function Chart({ title, times, series, format, isBinary, stacked }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const colours = useColours();
  const shape = series.map((one) => one.label).join("\n");

  useEffect(() => {
    const element = place.current;
    if (!element) return;
    const axis = { stroke: colours.muted, grid: { stroke: colours.line, width: 1 }, ticks: { show: false }, font: "11px system-ui" };
    const options: uPlot.Options = {
      width: Math.max(element.clientWidth, 50),
      height: HEIGHT,
      cursor: { sync: { key: "time" }, drag: { x: false, y: false }, points: { size: 6 } },
      legend: { live: true },
      scales: { y: { range: (_, __, max) => [0, max > 0 ? max * 1.1 : 1] } },
      axes: [
        { ...axis, values: (_, ticks) => ticks.map((at) => clock(new Date(at * 1000)).slice(0, ticks.some((at) => at % 60) ? 8 : 5)), space: 80, size: 30 },
        { ...axis, values: (_, ticks) => ticks.map((n) => format(n)), size: 72, space: 34, ...(isBinary ? { incrs: BINARY } : {}) },
      ],
      series: [
        { label: strings.range, value: (u, at) => clock(new Date((at ?? u.data[0].at(-1) ?? 0) * 1000)) },
        ...series.map((one, at): uPlot.Series => ({
          label: one.label,
          stroke: colours.series[one.colour - 1],
          fill: stacked ? colours.series[one.colour - 1] + "90" : undefined,
          width: stacked ? 1 : 1.75,
          points: { show: false },
          spanGaps: false,
          value: (u, _, __, index) => {
            const all = raw(u, at);
            const value = all?.[index ?? all.length - 1];
            return value === null || value === undefined ? strings.none : format(value);
          },
        })),
      ],
    };
    // Of what is stacked, the legend tells each one's own.
    const raw = (u: uPlot, at: number) => (u as uPlot & { own?: Series[] }).own?.[at]?.values;
    const made = new uPlot(options, [[]], element);
    plot.current = made;
    const observer = new ResizeObserver(() => made.setSize({ width: Math.max(element.clientWidth, 50), height: HEIGHT }));
    observer.observe(element);
    return () => {
      observer.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape, colours, stacked, isBinary]);

  useEffect(() => {
    const made = plot.current as (uPlot & { own?: Series[] }) | null;
    if (!made) return;
    made.own = series;
    const values = stacked ? stack(series.map((one) => one.values)) : series.map((one) => one.values);
    made.setData([times, ...values]);
  });

  const said = series.map((one) => {
    const known = one.values.filter((n): n is number => n !== null);
    return strings.container.latest(one.label, known.length ? format(known.at(-1)!) : strings.none, known.length ? format(Math.max(...known)) : strings.none);
  });
  return (
    <figure class="chart">
      <figcaption>{title}</figcaption>
      <div ref={place} class="plot" role="img" aria-label={strings.container.chartLabel(title, said.join("; "))} />
    </figure>
  );
}

/** Each is drawn from the bottom, the last first: so what is drawn later is below. */
function stack(all: (number | null)[][]): (number | null)[][] {
  const sums: (number | null)[][] = [];
  for (let at = all.length - 1; at >= 0; at -= 1) {
    const above = sums[0];
    sums.unshift(all[at]!.map((n, index) => (n === null && above?.[index] == null ? null : (n ?? 0) + (above?.[index] ?? 0))));
  }
  return sums;
}

/** A line without axes. */
export function Spark({ values, label }: { values: (number | null)[]; label: string }) {
  const known = values.filter((n): n is number => n !== null);
  if (known.length < 2) return <span class="muted">{strings.none}</span>;
  const [width, height] = [96, 22];
  const most = Math.max(...known);
  const x = (at: number) => (at / Math.max(values.length - 1, 1)) * width;
  const y = (n: number) => height - 2 - (n / (most || 1)) * (height - 4);
  let path = "";
  values.forEach((n, at) => {
    if (n !== null) path += `${at > 0 && values[at - 1] !== null && path ? "L" : "M"}${x(at).toFixed(1)} ${y(n).toFixed(1)}`;
  });
  return (
    <svg class="spark" viewBox={`0 0 ${width} ${height}`} role="img" aria-label={label}>
      <path d={path} />
    </svg>
  );
}
