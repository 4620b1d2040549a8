// Prometheus' text format, as far as the page needs it.

export interface Sample {
  name: string;
  labels: Record<string, string>;
  value: number;
}

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES: Record<string, string> = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

export function samples(text: string): Sample[] {
  const found: Sample[] = [];
  for (const line of text.split("\n")) {
    const [, name, labels, value] = LINE.exec(line) ?? [];
    if (name === undefined) continue;
    const pairs = [...(labels ?? "").matchAll(LABEL)].map(([, key, value]) => [key, value!.replace(/\\[n"\\]/g, (two) => ESCAPES[two]!)]);
    found.push({ name, labels: Object.fromEntries(pairs), value: Number(value) });
  }
  return found;
}

/** Of all that have this name and these labels. */
export function sum(all: Sample[], name: string, labels: Record<string, string> = {}): number {
  const has = (sample: Sample) => sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value);
  return all.filter(has).reduce((sum, sample) => sum + sample.value, 0);
}
