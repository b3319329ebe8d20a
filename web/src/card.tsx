/** The event in the middle: what it was given, what it is, what it made. */

import { useState } from "preact/hooks";

import { openBench } from "./bench";
import { axes, brief, count } from "./format";
import { current, events, go, groups, inspect, shown } from "./state";
import { stops, toggleStop } from "./breakpoints";
import { route } from "./route";
import { Thumb } from "./thumb";
import type { Event, EventDetail, Operand, Version } from "./types";

export const PHASES = { forward: "forward", recompute: "again", backward: "backward", update: "optimizer" } as const;

export function Card() {
  const detail = shown.value;
  const e = current.value!;
  return (
    <section class={`card ${e.phase}`} aria-label="Event" data-shown={detail?.k}>
      <Title e={e} />
      {detail && <Operands detail={detail} role="in" title="reads" />}
      {detail && <Strip detail={detail} />}
      {detail && <Operands detail={detail} role="out" title="makes" />}
    </section>
  );
}

function Title({ e }: { e: Event }) {
  const stop = stops.value.has(e.k);
  return (
    <div class="title">
      <button class={`stop ${stop ? "set" : ""}`} aria-pressed={stop} onClick={() => toggleStop(e.k)}
        title="Breakpoint (b)" aria-label="Breakpoint" />
      <h1 data-testid="op">{e.op}</h1>
      <span class="space" />
      {e.bad && <span class="badge bad">not finite</span>}
      <Twin e={e} />
      <p class="call">
        <span class={`phase ${e.phase}`}>{PHASES[e.phase]}</span>
        {e.phase !== "update" && <b>{groups.value[e.k]}</b>}
        <span class="mono" data-testid="call" title={e.text}>{e.text}</span>
      </p>
    </div>
  );
}

function Twin({ e }: { e: Event }) {
  const other = e.twin === null ? null : events.value[e.twin];
  if (!other) return null;
  return (
    <button class={`twin ${other.phase}`} onClick={() => go(other.k)}
      title="Between a line and the line that undoes it (t)">
      ⇅ {other.op} <span class="num">{other.k}</span>
    </button>
  );
}

function Strip({ detail }: { detail: EventDetail }) {
  const attrs = Object.entries(detail.attrs).map(([k, v]) => `${k} = ${String(v)}`);
  return (
    <div class="strip">
      <span class="arrow" aria-hidden="true">↓</span>
      <b class="mono">{detail.op}</b>
      <span class="muted mono attrs">{attrs.join("  ")}</span>
      <span class="space" />
      <button class="plain" onClick={openBench} title="Check this event on the gradient bench (g)">
        check <kbd>g</kbd>
      </button>
      <span class="num muted">{detail.ms.toFixed(3)} ms</span>
    </div>
  );
}

const MANY = 24; // operands beyond which they are folded by the name in the op's spec

function Operands({ detail, role, title }: {
  detail: EventDetail; role: "in" | "out"; title: string;
}) {
  const all = role === "in" ? detail.ins : detail.outs;
  return (
    <div class={`zone ${role}`} role="group" aria-label={title}>
      <h2>{title} <span class="muted num">{all.length}</span></h2>
      <div class="rows">
        {all.length > MANY ? <Folded all={all} /> : all.map((o, i) => <Row o={o} key={i} />)}
      </div>
    </div>
  );
}

/** AdamW reads and writes every tensor of p, m, v and dp. */
function Folded({ all }: { all: Operand[] }) {
  const names = [...new Set(all.map((o) => o.name))];
  const [open, setOpen] = useState(names[0]);
  const name = names.includes(open) ? open : names[0];
  return (
    <>
      <div class="tabs" role="tablist">
        {names.map((n) => (
          <button role="tab" key={n} aria-selected={n === name} onClick={() => setOpen(n)}>
            {n} <span class="num muted">{all.filter((o) => o.name === n).length}</span>
          </button>
        ))}
      </div>
      {all.filter((o) => o.name === name).map((o) => <Row o={o} key={o.version.tensor} />)}
    </>
  );
}

function Row({ o }: { o: Operand }) {
  const v = o.version;
  const { nans, infs } = v.statistics;
  return (
    <button class="operand" onClick={() => inspect(v.id)} data-version={v.id}
      title={`${v.tensor}, version ${v.number}: look inside`}>
      <Thumb r={route.value.r!} version={v} />
      <span class="who">
        <b class="spec">{o.name}{o.adds && <i title="added to">+</i>}</b>
        <span class="mono name">{v.tensor}</span>
        <span class="number" title="version">#{v.number}</span>
        <Dims v={v} dims={o.dims} />
        {nans + infs > 0 && <span class="badge bad">{[
          nans && `${nans} NaN`, infs && `${infs} ∞`].filter(Boolean).join(" ")}</span>}
      </span>
      <Numbers v={v} />
    </button>
  );
}

export function Dims({ v, dims }: { v: Version; dims: string[] }) {
  if (!v.shape.length) return <span class="dims">scalar</span>;
  const names = axes(dims, v.shape);
  return (
    <span class="dims" aria-label={`shape ${v.shape.join(" by ")}`}>
      {v.shape.map((n, i) => (
        <span key={i}>{/^\d/.test(names[i]) ? "" : <i>{names[i]}</i>}{n}</span>
      ))}
      <em>{v.dtype}</em>
    </span>
  );
}

const SIX = ["min", "max", "mean", "std", "norm", "zeros"] as const;

function Numbers({ v }: { v: Version }) {
  return (
    <span class="six">
      {SIX.map((name) => (
        <span key={name}>
          <i>{name === "norm" ? "‖·‖" : name}</i>
          <span class="num" data-stat={name}>
            {name === "zeros" ? count(v.statistics.zeros) : brief(v.statistics[name])}
          </span>
        </span>
      ))}
    </span>
  );
}
