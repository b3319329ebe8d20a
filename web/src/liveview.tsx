/** Runs: their curves while they train, and their recordings. */

import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import * as chart from "./chart";
import { theme } from "./colour";
import { count, short } from "./format";
import {
  clock, curves, followed, grown, indexOf, lost, smoothed, span, stateOf, type Curve,
} from "./live";
import { navigate, route } from "./route";
import { openRecording, runs } from "./state";
import type { RecordingInfo, Run } from "./types";

const COLOURS = {
  light: ["#0f7b6c", "#5d4bc4", "#c2571a", "#2a78b8", "#94600a", "#a8327d", "#55722a", "#6b665e"],
  dark: ["#5fd0ba", "#a99cff", "#ff9d62", "#74bdf2", "#e5b654", "#f08cc6", "#a9cf8a", "#b5b0a6"],
};

/** The step under the pointer or the keys, for all charts; null: the newest. */
const cursor = signal<number | null>(null);

const on = (flag: string) => route.value.flags.includes(flag);
const toggle = (flag: string) => () => navigate({
  flags: on(flag) ? route.value.flags.filter((f) => f !== flag) : [...route.value.flags, flag],
});

export const colourOf = (id: string): string => {
  const place = (runs.value ?? []).findIndex((x) => x.id === id);
  return COLOURS[theme()][Math.max(0, place) % COLOURS.light.length];
};

export function Live() {
  void grown.value;
  const all = runs.value;
  if (!all) return <main class="quiet" aria-busy="true" />;
  if (!all.length) return <Nothing />;
  const shown = followed().map((id) => curves.get(id)).filter((c) => c !== undefined);
  return (
    <main class="live">
      <Toolbar />
      <section class="runs" aria-label="Runs">
        {all.map((run) => <RunRow run={run} key={run.id} />)}
        {lost.value && <p class="badge bad" role="alert">{lost.value}</p>}
      </section>
      {on("table") ? <Rows shown={shown} /> : <Charts shown={shown} />}
    </main>
  );
}

function Nothing() {
  return (
    <main class="picker">
      <h1>No run here</h1>
      <div class="lead">
        <pre>backglass train tiny --out runs/a --trace-every 50</pre>
        <p>trains one, and records every 50th step; then reload this page.</p>
      </div>
    </main>
  );
}

function Toolbar() {
  const time = on("time");
  return (
    <div class="toolbar">
      <h1>Runs</h1>
      <span class="space" />
      <span class="segments" role="radiogroup" aria-label="Along the axis">
        <button role="radio" aria-checked={!time} onClick={() => time && toggle("time")()}>step</button>
        <button role="radio" aria-checked={time} onClick={() => time || toggle("time")()}>time</button>
      </span>
      <button aria-pressed={on("smooth")} onClick={toggle("smooth")}
        title="The mean of about the last ten steps, the steps themselves faint">smooth</button>
      <button aria-pressed={on("log")} onClick={toggle("log")}
        title="Loss and gradient norm on a logarithmic axis">log</button>
      <button aria-pressed={on("table")} onClick={toggle("table")}
        title="The numbers as a table">table</button>
    </div>
  );
}

// ------------------------------------------------------------ runs

function RunRow({ run }: { run: Run }) {
  void grown.value; // the curves are not signals themselves
  const ids = followed();
  const shown = ids.includes(run.id);
  const c = curves.get(run.id);
  const choose = () => navigate({
    on: shown ? ids.filter((id) => id !== run.id) : [...ids, run.id],
  });
  return (
    <section class={`run-row ${shown ? "" : "off"}`} data-run={run.name}>
      <label>
        <input type="checkbox" checked={shown} onChange={choose} />
        <i class="swatch" style={{ background: colourOf(run.id) }} />
        <b>{run.name}</b> <small class="muted">{run.preset}</small>
      </label>
      {c?.step.length && shown ? <Latest c={c} name={run.name} /> : null}
      {shown && <Recordings run={run} found={c?.recordings ?? run.recordings} />}
    </section>
  );
}

function Latest({ c, name }: { c: Curve; name: string }) {
  void clock.value;
  void grown.value;
  const { mood, text } = stateOf(c);
  const i = cursor.value === null ? c.step.length - 1 : indexOf(c.step, cursor.value);
  const v = indexOf(c.valStep, c.step[i] ?? 0);
  const facts: [string, string, string][] = [
    ["loss", "loss", short(c.loss[i])], ["val", "val loss", short(c.valLoss[v])],
    ["norm", "‖g‖", short(c.grad_norm[i])], ["lr", "lr", short(c.lr[i])],
    ["rate", "tokens/s", i < 0 ? "–" : count(Math.round(c.tokens_per_s[i]))],
    ["time", "time", i < 0 ? "–" : span(c.time[i])],
  ];
  return (
    <>
      <p class="progress-line">
        <span class={`badge ${mood}`} data-testid={`state-${name}`}>{text}</span>
        <span class="num">step <b data-testid={`latest-${name}`}>{c.step[i] ?? 0}</b>
          {c.steps !== null && <> of {count(c.steps)}</>}</span>
      </p>
      <dl class="facts-grid num">
        {facts.map(([key, label, value]) => (
          <div key={key}><dt>{label}</dt><dd data-fact={key}>{value}</dd></div>
        ))}
      </dl>
      {c.damaged.length > 0 && (
        <p class="badge warn" title={c.damaged.join("\n")}>damaged lines in log.jsonl</p>
      )}
    </>
  );
}

function Recordings({ run, found }: { run: Run; found: RecordingInfo[] }) {
  return (
    <p class="chips recordings">
      {found.filter((x) => !x.fork).map((x) => (
        <button class="chip num" key={x.id} onClick={() => openRecording(x.id)}
          data-recording={x.step} data-complete={x.complete}
          title={`${x.events} events, level ${x.level}${x.complete ? "" : ", not finished"}`}>
          <i class={x.complete ? "full" : ""} style={{ borderColor: colourOf(run.id),
            background: x.complete ? colourOf(run.id) : "none" }} />
          step {count(x.step)}{x.complete ? "" : " …"}
        </button>
      ))}
      {!found.length && <span class="muted">no step recorded yet</span>}
    </p>
  );
}

// ------------------------------------------------------------ charts

interface Panel {
  key: "loss" | "grad_norm" | "lr" | "tokens_per_s";
  title: string;
}

const PANELS: Panel[] = [
  { key: "loss", title: "loss" }, { key: "grad_norm", title: "gradient norm" },
  { key: "lr", title: "learning rate" }, { key: "tokens_per_s", title: "tokens/s" },
];

const xOf = (c: Curve): number[] => (on("time") ? c.time : c.step);

function chartOf(p: Panel, shown: Curve[]): chart.Chart {
  const series: chart.Series[] = [];
  let x1 = 0;
  const marks: chart.Chart["marks"] = [];
  for (const c of shown) {
    const colour = colourOf(c.id);
    const x = xOf(c);
    x1 = Math.max(x1, x[x.length - 1] ?? 0);
    const smooth = on("smooth") && p.key !== "lr";
    series.push({ colour, x, y: c[p.key], faint: smooth });
    if (smooth) series.push({ colour, x, y: smoothed(c[p.key]) });
    if (p.key !== "loss") continue;
    const place = (step: number) => (on("time") ? c.time[indexOf(c.step, step)] ?? 0 : step);
    series.push({ colour, x: c.valStep.map(place), y: c.valLoss, dots: true });
    for (const r of c.recordings) {
      if (!r.fork) marks.push({ x: place(r.step), colour, full: r.complete });
    }
  }
  const first = shown[0];
  const at = cursor.value;
  const where = at === null || !first ? null : on("time")
    ? first.time[indexOf(first.step, at)] ?? null : at;
  return {
    series, marks, x0: 0, x1: x1 || 1, log: on("log") && (p.key === "loss" || p.key === "grad_norm"),
    cursor: where, format: tick, formatX: (x) => (on("time") ? span(x) : count(x)),
  };
}

const tick = (y: number): string =>
  (y !== 0 && (Math.abs(y) >= 1e6 || Math.abs(y) < 1e-4) ? y.toExponential(1)
    : y.toLocaleString("en-US", { maximumSignificantDigits: 6 })).replaceAll("-", "−");

function Charts({ shown }: { shown: Curve[] }) {
  const first = shown.find((c) => c.step.length);
  if (!first) {
    return (
      <section class="empty-state">
        <h2>{shown.length ? "Nothing logged yet" : "No run is chosen"}</h2>
        <p class="muted">{shown.length ? "The first step appears here as soon as it is written."
          : "Tick one on the left."}</p>
      </section>
    );
  }
  const i = cursor.value === null ? first.step.length - 1 : indexOf(first.step, cursor.value);
  const spoken = `step ${first.step[i]}, loss ${short(first.loss[i])}`;
  return (
    <section class="charts" role="slider" tabIndex={0} aria-label="Step" aria-valuemin={0}
      aria-valuemax={first.step.length - 1} aria-valuenow={i} aria-valuetext={spoken}
      data-points={first.step.length} onKeyDown={(e) => keys(e, first, i)}>
      {PANELS.map((p) => <Plot panel={p} shown={shown} key={p.key} />)}
    </section>
  );
}

function keys(e: KeyboardEvent, c: Curve, i: number): void {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const far = e.shiftKey ? 10 : 1;
  let to = i;
  if (e.key === "ArrowLeft") to -= far;
  else if (e.key === "ArrowRight") to += far;
  else if (e.key === "Home") to = 0;
  else if (e.key === "End") to = c.step.length - 1;
  else if (e.key === "Enter") return openNearest(c, c.step[i]);
  else if (e.key !== "Escape") return;
  e.preventDefault();
  e.stopPropagation();
  cursor.value = e.key === "Escape" ? null
    : c.step[Math.max(0, Math.min(c.step.length - 1, to))];
}

/** The recording at a step, or the last before it. */
function openNearest(c: Curve, step: number): void {
  const found = c.recordings.filter((x) => !x.fork && x.step <= step).sort((a, b) => b.step - a.step);
  if (found.length) openRecording(found[0].id);
}

function Plot({ panel, shown }: { panel: Panel; shown: Curve[] }) {
  const box = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const [[width, height], setSize] = useState([1, 1]);
  useEffect(() => {
    const watch = new ResizeObserver(([b]) =>
      setSize([Math.floor(b.contentRect.width), Math.floor(b.contentRect.height)]));
    watch.observe(box.current!);
    return () => watch.disconnect();
  }, []);
  const c = chartOf(panel, shown);
  theme();
  useEffect(() => {
    if (width > 80 && height > 40) chart.draw(canvas.current!, c, width, height);
  });
  const point = (e: PointerEvent) => {
    const x = chart.valueAt(c, width, e.offsetX);
    const first = shown.find((s) => s.step.length);
    if (first) cursor.value = first.step[Math.max(0, indexOf(xOf(first), x))];
  };
  return (
    <figure class={`plot ${panel.key}`}>
      <figcaption>{panel.title}{panel.key === "loss" && <span class="muted"> training, and ● validation</span>}</figcaption>
      <div ref={box}>
        <canvas ref={canvas} aria-hidden="true" data-plot={panel.key}
          style={{ width: `${width}px`, height: `${height}px` }}
          onPointerMove={point} onPointerLeave={() => (cursor.value = null)} />
      </div>
    </figure>
  );
}

// ------------------------------------------------------------ table

const MOST_ROWS = 200;

/** The newest rows first; exact numbers. */
function Rows({ shown }: { shown: Curve[] }) {
  const [before, setBefore] = useState(0);
  return (
    <section class="rows-table" aria-label="Numbers" tabIndex={0}>
      {shown.map((c) => {
        const end = Math.max(0, c.step.length - before);
        const picked = Array.from({ length: Math.min(MOST_ROWS, end) }, (_, i) => end - 1 - i);
        const val = new Map(c.valStep.map((s, i) => [s, c.valLoss[i]]));
        return (
          <table key={c.id}>
            <caption><i class="swatch" style={{ background: colourOf(c.id) }} />{" "}
              {runs.value?.find((x) => x.id === c.id)?.name}</caption>
            <thead>
              <tr>{["step", "loss", "val loss", "gradient norm", "learning rate", "tokens/s", "ms"]
                .map((name) => <th scope="col" key={name}>{name}</th>)}</tr>
            </thead>
            <tbody>
              {picked.map((i) => (
                <tr key={c.step[i]}>
                  <th scope="row" class="num">{c.step[i]}</th>
                  <td class="num">{c.loss[i]}</td>
                  <td class="num">{val.get(c.step[i]) ?? ""}</td>
                  <td class="num">{c.grad_norm[i]}</td>
                  <td class="num">{c.lr[i]}</td>
                  <td class="num">{c.tokens_per_s[i]}</td>
                  <td class="num">{c.ms[i]}</td>
                </tr>
              ))}
            </tbody>
          </table>
        );
      })}
      <p class="row">
        <button disabled={!before} onClick={() => setBefore(Math.max(0, before - MOST_ROWS))}>newer</button>
        <button disabled={!shown.some((c) => c.step.length > before + MOST_ROWS)}
          onClick={() => setBefore(before + MOST_ROWS)}>older</button>
      </p>
    </section>
  );
}
