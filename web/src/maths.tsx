/** What the op computes and why its backward is what it is. */

import { useEffect, useState } from "preact/hooks";

import * as api from "./api";
import { lit, shown } from "./state";
import { route } from "./route";
import type { Maths as Page } from "./types";

/** What a fetch has brought; the former answer stays on the screen until the next one is there. */
export function useFetched<T>(
  fetcher: (signal: AbortSignal) => Promise<T>, key: string,
): T | null {
  const [value, setValue] = useState<T | null>(null);
  useEffect(() => {
    const fetching = new AbortController();
    fetcher(fetching.signal).then(setValue).catch(
      (error) => api.aborted(error) || setValue(null));
    return () => fetching.abort();
  }, [key]);
  return value;
}

export function Maths() {
  const r = route.value.r!;
  const op = shown.value?.op ?? "";
  const page = useFetched<Page | null>(
    async (signal) => (op ? api.maths(r, op, signal) : null), `${r} ${op}`);
  const backward = shown.value?.phase === "backward";
  return (
    <section class="maths pane" aria-label="Maths" tabIndex={-1}>
      <h2>Maths</h2>
      {page && (
        <div class="scroll" tabIndex={0} role="region" aria-label="Formulas and derivation">
          <p class="sentence">{page.sentence}</p>
          <Formula title="Forward" text={page.forward} now={!backward} />
          <Formula title="Backward" text={page.backward} now={backward} />
          <Derivation steps={page.derivation} />
          {page.saved && <p class="aside"><b>Saved</b> {page.saved}</p>}
          {page.source && <p class="aside"><b>Source</b> {page.source}</p>}
        </div>
      )}
    </section>
  );
}

function Formula({ title, text, now }: { title: string; text: string; now: boolean }) {
  if (!text.trim()) return null;
  return (
    <div class={`formula ${now ? "now" : ""}`}>
      <h3>{title}</h3>
      <pre>{dedent(text)}</pre>
    </div>
  );
}

export interface Step {
  number: number;
  words: string;
  formula: string;
}

/** “3  μ is a mean:      ∂μ/∂x_j = 1/C”: number, words and formula. */
export function stepOf(text: string, place: number): Step {
  const numbered = /^\s*(\d+)[.)]?\s+([\s\S]*)$/.exec(text);
  const body = (numbered ? numbered[2] : text).trim();
  const parts = /^([\s\S]*?:)(?:\s{2,}|\s*\n\s*)([\s\S]*)$/.exec(body);
  const plain = (x: string) => x.replace(/\s+/g, " ").trim();
  return {
    number: numbered ? Number(numbered[1]) : place + 1,
    words: plain(parts ? parts[1] : body),
    formula: parts ? plain(parts[2]) : "",
  };
}

function Derivation({ steps }: { steps: string[] }) {
  if (!steps.length) return null;
  return (
    <div class="derivation">
      <h3>Derivation</h3>
      <ol>
        {steps.map(stepOf).map((s) => (
          <li key={s.number} class={lit.value === s.number ? "lit" : ""} data-step={s.number}
            onMouseEnter={() => (lit.value = s.number)} onMouseLeave={() => (lit.value = null)}>
            <button class="num" onFocus={() => (lit.value = s.number)}
              onBlur={() => (lit.value = null)} aria-label={`step ${s.number}`}>{s.number}</button>
            <span>
              {s.words}
              {s.formula && <code>{s.formula}</code>}
            </span>
          </li>
        ))}
      </ol>
    </div>
  );
}

export function dedent(text: string): string {
  const lines = text.replace(/^\s*\n/, "").trimEnd().split("\n");
  const margins = lines.filter((l) => l.trim()).map((l) => /^ */.exec(l)![0].length);
  const margin = Math.min(...margins, 80);
  return lines.map((l) => l.slice(margin)).join("\n");
}
