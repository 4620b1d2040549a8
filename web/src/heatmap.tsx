// Round-trip times over time: a column is a step, a row a bucket, and the darker a field, the more round trips.

import { useEffect, useRef } from "preact/hooks";
import { clock, count, micros } from "./format.ts";
import { merge, quantile, STEP, type Histogram } from "./histogram.ts";
import { strings } from "./strings.ts";
import { useColours } from "./theme.tsx";

const HEIGHT = 220;
const LEFT = 66;
const BOTTOM = 22;

export function Heatmap({ times, steps }: { times: number[]; steps: (Histogram | undefined)[] }) {
  const place = useRef<HTMLCanvasElement>(null);
  const colours = useColours();
  const all = merge(steps);

  useEffect(() => {
    const canvas = place.current;
    if (!canvas) return;
    const draw = () => paint(canvas, times, steps, all, colours);
    draw();
    const observer = new ResizeObserver(draw);
    observer.observe(canvas);
    return () => observer.disconnect();
  });

  const label = strings.container.heatmapLabel(count(all.count), micros(quantile(all, 0.5)), micros(quantile(all, 0.99)));
  return (
    <figure class="chart wide">
      <figcaption>{strings.container.rtt}<small>{strings.container.rttAbout}</small></figcaption>
      {all.count > 0
        ? <canvas ref={place} class="heatmap" role="img" aria-label={label} />
        : <p class="muted">{strings.container.noSamples}</p>}
    </figure>
  );
}

/** Which row a bucket is in: half octaves of a microsecond. */
const row = (us: number) => Math.round(Math.log(us) / Math.log(STEP));

function paint(
  canvas: HTMLCanvasElement, times: number[], steps: (Histogram | undefined)[], all: Histogram,
  colours: ReturnType<typeof useColours>,
) {
  const scale = devicePixelRatio || 1;
  const width = canvas.clientWidth;
  canvas.width = width * scale;
  canvas.height = HEIGHT * scale;
  const context = canvas.getContext("2d");
  if (!context || width <= LEFT) return;
  context.scale(scale, scale);
  context.font = "11px system-ui";

  const rows = all.buckets.map(({ le_us }) => le_us).filter((us): us is number => us !== null).map(row);
  const [low, high] = [Math.min(...rows) - 1, Math.max(...rows) + 1];
  const rowHeight = (HEIGHT - BOTTOM) / (high - low + 1);
  const y = (at: number) => (high - at) * rowHeight;
  const columnWidth = (width - LEFT) / steps.length;
  const most = Math.max(...steps.flatMap((step) => step?.buckets.map(({ count }) => count) ?? []));

  steps.forEach((step, column) => {
    for (const { le_us, count } of step?.buckets ?? []) {
      const at = le_us === null ? high : row(le_us);
      // What is rare must still be seen.
      context.globalAlpha = 0.12 + 0.88 * (Math.log1p(count) / Math.log1p(most));
      context.fillStyle = colours.heat;
      context.fillRect(LEFT + column * columnWidth, y(at), Math.max(columnWidth - 0.5, 1), rowHeight - 0.5);
    }
  });
  context.globalAlpha = 1;

  context.fillStyle = colours.muted;
  context.textAlign = "right";
  context.textBaseline = "middle";
  const every = Math.max(1, Math.ceil(20 / rowHeight));
  for (let at = low; at <= high; at += every) context.fillText(micros(STEP ** at), LEFT - 8, y(at) + rowHeight / 2);
  context.textAlign = "center";
  const labels = Math.max(1, Math.floor((width - LEFT) / 110));
  for (let at = 0; at < labels; at += 1) {
    const column = Math.floor(((at + 0.5) / labels) * times.length);
    const time = times[column];
    if (time !== undefined) context.fillText(clock(new Date(time * 1000)), LEFT + (column + 0.5) * columnWidth, HEIGHT - BOTTOM / 2 + 2);
  }
}
