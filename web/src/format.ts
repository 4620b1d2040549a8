// Numbers as people read them.

import { strings } from "./strings.ts";

const digits = (n: number) => (n >= 100 ? 0 : n >= 10 ? 1 : 2);

/** Three digits, without zeros that tell nothing. */
const three = (n: number) => Number(n.toFixed(digits(Math.abs(n)))).toString();

/** A count: 1234 is 1,234, and more than a million has a prefix. */
export function count(n: number): string {
  if (n < 1e6) return Math.round(n).toLocaleString("en");
  const [unit, size] = n < 1e9 ? ["M", 1e6] : n < 1e12 ? ["G", 1e9] : ["T", 1e12];
  return three(n / (size as number)) + unit;
}

/** A number that need not be whole. */
export function number(n: number): string {
  return n >= 1000 ? count(n) : three(n);
}

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function bytes(n: number): string {
  let at = 0;
  while (n >= 1024 && at < SIZES.length - 1) {
    n /= 1024;
    at += 1;
  }
  return `${at === 0 ? Math.round(n) : three(n)} ${SIZES[at]}`;
}

export const rate = (n: number) => `${bytes(n)}/s`;

/** A duration in microseconds. */
export function micros(us: number | undefined): string {
  if (us === undefined) return strings.none;
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${three(us / 1e3)} ms`;
  return seconds(us / 1e6);
}

export function seconds(s: number): string {
  if (s < 1) return micros(s * 1e6);
  if (s < 60) return `${three(s)} s`;
  const whole = Math.round(s);
  const parts: [number, string][] = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([n]) => n > 0);
  return parts.slice(first, first + 2).filter(([n]) => n > 0).map(([n, unit]) => `${n} ${unit}`).join(" ");
}

/** A share from 0 to 1. */
export function percent(share: number): string {
  if (share === 0) return "0 %";
  const n = share * 100;
  return n < 0.01 ? "< 0.01 %" : `${three(n)} %`;
}

/** An address and a port. */
export function endpoint(end: { address?: string; port?: number }): string {
  const address = end.address ?? "";
  const host = address.includes(":") ? `[${address}]` : address;
  return end.port ? `${host}:${end.port}` : host;
}

export const clock = (time: Date, withMillis = false) =>
  time.toLocaleTimeString("en-GB", { hour12: false }) + (withMillis ? `.${String(time.getMilliseconds()).padStart(3, "0")}` : "");

/** A word of the API, as people say it. */
export const word = (name: string) => strings.words[name] ?? name.replaceAll("_", " ");
