/** A tensor, closely: the heatmap down to its numbers, and everything known about it. */

import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

import { number, useAgainst, useBefore, useDifferenceTop, type Against } from "./against";
import * as api from "./api";
import { Dims } from "./card";
import { css, theme, type Scale } from "./colour";
import { axes, count, letter, matrix, ravel, short, size, unravel, visible } from "./format";
import * as heat from "./heatmap";
import { Histogram } from "./histogram";
import { MapView, moveTo, viewOf } from "./mapview";
import { useFetched } from "./maths";
import { navigate, route } from "./route";
import {
  closeTensor, current, events, fail, go, overlay, recording, runs, selected,
} from "./state";
import { Table } from "./table";
import { tokenAt, tokensOf, type Tokens } from "./tokens";
import type { Histogram as Counts, Planes, VersionDetail } from "./types";

const rootScale = signal(true);
const asTable = signal(false);
const window_ = signal<[number, number]>([1, 1]);

export function Inspector() {
  const { r, t } = route.value;
  const detail = useFetched<VersionDetail>((signal) => api.version(r!, t!, signal).catch((e) => {
    if (!api.aborted(e)) fail(e);
    throw e;
  }), `${r} ${t}`);
  const planes = useFetched<Planes | null>(
    async (signal) => (detail?.pictured ? api.picture(r!, detail.id, signal) : null),
    `${r} ${detail?.id}`);
  if (!detail) return <section class="inspector" aria-busy="true" />;
  return <Open detail={detail} planes={detail.pictured ? planes : null} />;
}

function Open({ detail, planes }: { detail: VersionDetail; planes: Planes | null }) {
  const r = route.value.r!;
  const against = useAgainst(r, detail);
  const top = useDifferenceTop(r, detail, against);
  const s = subjectOf(r, detail, top, against);
  const run = runOf(detail);
  const tokens = tokensOf(r, run);
  const cursor = cursorOf(detail, s);
  const value = useCell(r, detail, cursor);
  useEffect(() => void (selected.value = { version: detail, index: cursor, value }));
  const spoken = `${indexWords(detail, cursor, tokens)}: ${value ?? "not stored"}`;
  return (
    <section class="inspector" data-version={detail.id} aria-label={`Tensor ${detail.tensor}`}>
      <Toolbar detail={detail} s={s} />
      <div class="look">
        {asTable.value && detail.stored
          ? <Table r={r} detail={detail} s={s} cursor={cursor} />
          : <MapView subject={s} detail={detail} planes={planes} tokens={tokens} cursor={cursor}
              spoken={spoken} size={window_} />}
        {!detail.stored && <NotStored detail={detail} />}
      </div>
      <Side detail={detail} s={s} cursor={cursor} value={value} tokens={tokens} />
    </section>
  );
}

/** Which micro-batch the tensor is of: that of its maker, or of whoever reads it first. */
function runOf(detail: VersionDetail): number {
  const k = detail.made_by ?? detail.used_by[0] ?? current.value?.k ?? 0;
  return events.value[k]?.run ?? 0;
}

/** Attention weights look like attention one head at a time; other tensors are shown whole. */
function sliceOf(detail: VersionDetail): number[] {
  const { sl, ix } = route.value;
  const fixable = Math.max(0, detail.shape.length - 2);
  if (sl) return sl.slice(0, fixable).map((n, i) => Math.max(0, Math.min(detail.shape[i] - 1, n)));
  const square = detail.stored && detail.shape.length >= 4 && detail.dims.slice(-2).join() === "T,T";
  return square ? detail.shape.slice(0, fixable).map((_, i) => ix?.[i] ?? 0) : [];
}

function subjectOf(
  r: string, detail: VersionDetail, differenceTop: number, against: Against | null,
): heat.Subject {
  const { rows, columns } = matrix(detail.shape);
  const slice = sliceOf(detail);
  const each = size(detail.shape.slice(slice.length, -1));
  const from = slice.reduce((row, n, i) => row * detail.shape[i] + n, 0) * (slice.length ? each : 0);
  const asked = route.value.plane as heat.Plane;
  const difference = asked === "difference" && against !== null;
  const plane = difference || heat.PLANES.includes(asked as never) ? asked : "mean";
  const x = detail.statistics;
  const top = difference ? differenceTop : Math.max(Math.abs(x.min), Math.abs(x.max));
  return {
    r, v: detail.id, before: difference ? against.v : null, beforeR: against?.r ?? r,
    sign: against?.sign ?? 1, rows, columns, from,
    to: slice.length ? from + each : rows, fixed: slice.length, stored: detail.stored, pictured: detail.pictured, plane,
    scale: { top: top || 1, root: rootScale.value },
  };
}

function cursorOf(detail: VersionDetail, s: heat.Subject): number[] {
  const { ix } = route.value;
  const fits = ix?.length === detail.shape.length && ix.every((n, i) => n < detail.shape[i]);
  if (!fits) return unravel(detail.shape, s.from, 0);
  const { row, column } = ravel(detail.shape, ix!);
  return unravel(detail.shape, Math.max(s.from, Math.min(s.to - 1, row)), column);
}

/** The exact number under the cursor. */
function useCell(r: string, detail: VersionDetail, cursor: number[]): string | null {
  const key = `${r} ${detail.id} ${cursor.join()}`;
  const found = useFetched<{ key: string; text: string } | null>(async (signal) => {
    if (!detail.stored) return null;
    const { row, column } = ravel(detail.shape, cursor);
    const text = (await api.cells(r, detail.id, row, column, 1, 1, signal))[0][0];
    return { key, text };
  }, key);
  return found?.key === key ? found.text : null;
}

function indexWords(detail: VersionDetail, index: number[], tokens: Tokens | null): string {
  const names = axes(detail.dims, detail.shape);
  return names.map((name, i) => {
    const token = tokenAt(tokens, names, index, i);
    return `${letter(name)} ${index[i]}${token ? ` “${token}”` : ""}`;
  }).join(", ");
}

// ------------------------------------------------------------ toolbar

function Toolbar({ detail, s }: { detail: VersionDetail; s: heat.Subject }) {
  const to = (v: number | null) => () => v !== null && navigate({ t: v });
  return (
    <div class="toolbar">
      <h1 class="mono" data-testid="tensor">{detail.tensor}</h1>
      <span class="versions">
        <button aria-label="Version before ([)" title="Version before ([)"
          disabled={detail.previous === null} onClick={to(detail.previous)}>‹</button>
        <span class="num" data-testid="version">#{detail.number}</span>
        <button aria-label="Next version (])" title="Next version (])"
          disabled={detail.next === null} onClick={to(detail.next)}>›</button>
      </span>
      <Dims v={detail} dims={detail.dims} />
      <span class="space" />
      <Slices detail={detail} />
      <PlaneChoice detail={detail} s={s} />
      <button aria-pressed={rootScale.value} onClick={() => (rootScale.value = !rootScale.value)}
        title="Colour by the square root, which shows small numbers beside large ones">√</button>
      <button aria-pressed={asTable.value} disabled={!detail.stored}
        onClick={() => (asTable.value = !asTable.value)} title="Numbers as a table">table</button>
      <button onClick={() => (overlay.value = "edit")} title="What if this cell were … (e)">edit</button>
      <button onClick={() => navigate({ z: null })} disabled={!route.value.z}
        title="The whole tensor (0)">fit</button>
      <button class="icon" onClick={closeTensor} title="Back to the event (Esc)"
        aria-label="Back to the event">✕</button>
    </div>
  );
}

const MOST_CHOICES = 2048;

function Slices({ detail }: { detail: VersionDetail }) {
  const slice = sliceOf(detail);
  const names = axes(detail.dims, detail.shape);
  const choose = (axis: number, text: string) => {
    const fixed = text === "" ? slice.slice(0, axis) : [...slice.slice(0, axis), Number(text)];
    navigate({ sl: fixed, z: null, ix: null });
  };
  const offered = Math.min(slice.length + 1, Math.max(0, detail.shape.length - 2));
  return (
    <>
      {names.slice(0, offered).map((name, axis) => detail.shape[axis] <= MOST_CHOICES && (
        <label class="slice" key={axis}>
          <i>{letter(name)}</i>
          <select value={slice[axis] ?? ""} onChange={(e) => choose(axis, e.currentTarget.value)}>
            <option value="">all {detail.shape[axis]}</option>
            {Array.from({ length: detail.shape[axis] }, (_, n) => <option value={n}>{n}</option>)}
          </select>
        </label>
      ))}
    </>
  );
}

function PlaneChoice({ detail, s }: { detail: VersionDetail; s: heat.Subject }) {
  const names: Record<string, string> = { bad: "NaN", difference: "Δ" };
  const offered = [...heat.PLANES, "difference" as const];
  return (
    <span class="segments" role="radiogroup" aria-label="What is shown">
      {offered.map((p) => (
        <button key={p} role="radio" aria-checked={s.plane === p} title={PLANE_HELP[p]}
          disabled={p === "difference" && s.before === null && !differs(detail)}
          onClick={() => navigate({ plane: p })}>{names[p] ?? p}</button>
      ))}
    </span>
  );
}

const differs = (detail: VersionDetail): boolean =>
  detail.stored && (route.value.vs !== null || detail.previous !== null);

const PLANE_HELP: Record<string, string> = {
  mean: "Where many numbers share a pixel: their mean", min: "… their smallest",
  max: "… their largest", bad: "Only what is NaN or infinite",
  difference: "The difference to the version before, or to the other recording (d)",
};

function NotStored({ detail }: { detail: VersionDetail }) {
  const m = recording.value!.manifest;
  const run = runs.value?.find((x) => x.recordings.some((y) => y.id === route.value.r));
  const words = detail.pictured ? "Only statistics and this picture were kept."
    : "Only statistics were kept.";
  return (
    <p class="not-stored" role="note">
      {words} To see every number, record the step with them:{" "}
      <code>backglass trace {run?.name ?? "RUN"} --step {m.step} --level 3</code>
    </p>
  );
}

// ------------------------------------------------------------ side

function Side(props: {
  detail: VersionDetail; s: heat.Subject; cursor: number[]; value: string | null;
  tokens: Tokens | null;
}) {
  const { detail, s } = props;
  const r = route.value.r!;
  const histogram = useFetched<Counts | null>(
    async (signal) => (detail.pictured ? api.histogram(r, detail.id, signal) : null),
    `${r} ${detail.id}`);
  return (
    <aside class="side" aria-label="About the tensor">
      <Readout {...props} />
      <Legend scale={s.scale} signed={s.plane === "difference" || detail.statistics.min < 0} />
      <Facts detail={detail} />
      <Histogram h={detail.pictured ? histogram : null} />
      <BadCells detail={detail} s={s} />
      <Links detail={detail} />
    </aside>
  );
}

function Readout({ detail, s, cursor, value, tokens }: Parameters<typeof Side>[0]) {
  const names = axes(detail.dims, detail.shape);
  const text = recording.value!.text;
  const before = useBefore(s, detail, cursor);
  const shown = value ?? (detail.stored ? "…" : "not stored");
  const vocabulary = (i: number) =>
    ["V", "Vp"].includes(names[i]) ? visible(text[cursor[i]] ?? "") : "";
  return (
    <div class="readout">
      <output class="num" data-testid="cell-value">{shown}</output>
      {before !== null && value !== null && (
        <p class="muted num">
          Δ {short(s.sign * (number(value) - number(before)))}, {s.sign > 0 ? "before" : "other"}{" "}
          <b data-testid="cell-before">{before}</b>
        </p>
      )}
      <p class="index" data-testid="cell-index">
        {names.map((name, i) => {
          const token = tokenAt(tokens, names, cursor, i) || vocabulary(i);
          return (
            <span key={i}>
              <i>{letter(name)}</i>{cursor[i]}{token && <q>{token}</q>}
            </span>
          );
        })}
      </p>
    </div>
  );
}

function Legend({ scale, signed }: { scale: Scale; signed: boolean }) {
  theme();
  const stops = Array.from({ length: 33 }, (_, i) => {
    const t = signed ? i / 16 - 1 : i / 32;
    return css(t, { top: 1, root: false });
  });
  const middle = scale.root ? scale.top / 4 : scale.top / 2;
  const ticks = signed ? [-scale.top, -middle, 0, middle, scale.top] : [0, middle, scale.top];
  return (
    <div class="legend">
      <div style={{ background: `linear-gradient(90deg, ${stops.join(",")})` }} />
      <p>{ticks.map((x, i) => <span class="num" key={i}>{short(x)}</span>)}</p>
    </div>
  );
}

const FACTS = ["min", "max", "mean", "std", "norm", "zeros", "nans", "infs"] as const;

const COUNTS = new Set<string>(["zeros", "nans", "infs"]);

function Facts({ detail }: { detail: VersionDetail }) {
  const x = detail.statistics;
  return (
    <dl class="stats">
      {FACTS.map((name) => (
        <div key={name} class={(name === "nans" || name === "infs") && x[name] ? "bad" : ""}>
          <dt>{{ norm: "‖·‖", nans: "NaN", infs: "∞" }[name as string] ?? name}</dt>
          <dd class="num" data-stat={name} title={String(x[name])}>{COUNTS.has(name) ? count(x[name]) : short(x[name])}</dd>
        </div>
      ))}
    </dl>
  );
}

function BadCells({ detail, s }: { detail: VersionDetail; s: heat.Subject }) {
  const { nans, infs } = detail.statistics;
  if (!nans && !infs) return null;
  const jump = (index: number[]) => {
    const { row, column } = ravel(detail.shape, index);
    const [width, height] = window_.value;
    if (row < s.from || row >= s.to) navigate({ sl: null, ix: index });
    else moveTo(s, detail, row, column, viewOf(s, width, height), width, height);
  };
  return (
    <div class="bad-cells">
      <h3>Not finite <span class="num">{nans + infs}</span></h3>
      <div class="chips">
        {detail.bad.map((index) => (
          <button class="chip bad num" key={index.join()} onClick={() => jump(index)}>
            {index.join(",")}
          </button>
        ))}
        {nans + infs > detail.bad.length && <span class="muted">the first {detail.bad.length}</span>}
      </div>
    </div>
  );
}

function Links({ detail }: { detail: VersionDetail }) {
  const link = (k: number) => {
    const e = events.value[k];
    return (
      <button class={`event-link ${e.phase}`} key={k} title={e.text}
        onClick={() => { closeTensor(); go(k); }}>
        <span class="num">{k}</span> {e.op}
      </button>
    );
  };
  return (
    <div class="links">
      <h3>Made by</h3>
      {detail.made_by === null ? <p class="muted">there before the step</p> : link(detail.made_by)}
      <h3>Used by</h3>
      {detail.used_by.length ? detail.used_by.map(link) : <p class="muted">nothing in this step</p>}
    </div>
  );
}
