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
  const [about, rest] = text.includes("\n\n") ? text.split(/\n\n([\s\S]*)/) : ["", text];
  const lead = about && `, ${about[0].toLowerCase()}${about.slice(1)}`;
  return (
    <div class={`formula ${now ? "now" : ""}`}>
      <h3>{title}<span class="muted">{lead}</span></h3>
      {dedent(rest).split(/\n{2,}/).map((part, i) => PROSE.test(part)
        ? <p key={i}>{part}</p>
        : <pre key={i}>{part.split("\n").map((line) => <Line line={line} />)}</pre>)}
    </div>
  );
}

/** A paragraph of words among formulas. */
const PROSE = /^[A-Z][a-z]* [a-z]+/;

/** Formulas that stand side by side may stand below each other, but are not broken. */
function Line({ line }: { line: string }) {
  const parts = line.trim().split(/ {3,}/);
  return <div>{parts.map((part, i) => <span key={i}>{part}</span>)}</div>;
}

export interface Step {
  number: number;
  words: string;
  formula: string;
}

/** “μ is a mean: ∂μ/∂x_j = 1/C” is the words and the formula of a step; not every step has one. */
export function stepOf(text: string, place: number): Step {
  const cut = text.lastIndexOf(": ") + 1;
  const formula = text.slice(cut).trim();
  const some = cut > 0 && /[=∝]/.test(formula);
  return {
    number: place + 1, words: some ? text.slice(0, cut) : text, formula: some ? formula : "",
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
