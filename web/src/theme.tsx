// Light and dark: as the system has it, or as somebody chose.

import { useEffect, useState } from "preact/hooks";
import { strings } from "./strings.ts";

type Theme = "auto" | "light" | "dark";
const KEY = "tcptide.theme";

const stored = (): Theme => {
  try {
    const theme = localStorage.getItem(KEY);
    return theme === "light" || theme === "dark" ? theme : "auto";
  } catch {
    return "auto";
  }
};

function apply(theme: Theme) {
  if (theme === "auto") delete document.documentElement.dataset["theme"];
  else document.documentElement.dataset["theme"] = theme;
  dispatchEvent(new Event("theme"));
}

apply(stored());

export function ThemeSwitch() {
  const [theme, set] = useState(stored);
  const choose = (chosen: Theme) => {
    set(chosen);
    try {
      localStorage.setItem(KEY, chosen);
    } catch {
      // It lasts as long as the page, then.
    }
    apply(chosen);
  };
  return (
    <label class="choice">
      <span class="hidden">{strings.theme.label}</span>
      <select value={theme} onChange={(event) => choose(event.currentTarget.value as Theme)}>
        {(["auto", "light", "dark"] as const).map((one) => <option value={one}>{strings.theme[one]}</option>)}
      </select>
    </label>
  );
}

/** What is drawn on a canvas cannot ask the style sheet by itself. */
export interface Colours {
  text: string;
  muted: string;
  line: string;
  panel: string;
  heat: string;
  series: string[];
}

function read(): Colours {
  const style = getComputedStyle(document.documentElement);
  const of = (name: string) => style.getPropertyValue(name).trim();
  return {
    text: of("--text"), muted: of("--muted"), line: of("--line"), panel: of("--panel"), heat: of("--heat"),
    series: [1, 2, 3, 4, 5, 6].map((at) => of(`--series-${at}`)),
  };
}

export function useColours(): Colours {
  const [colours, set] = useState(read);
  useEffect(() => {
    const changed = () => set(read());
    const system = matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", changed);
    addEventListener("theme", changed);
    return () => {
      system.removeEventListener("change", changed);
      removeEventListener("theme", changed);
    };
  }, []);
  return colours;
}
