/** Attention of a micro-batch: every layer and head as a small map, one of them with its tokens, and
 * beside it the gradient that reaches it. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";

import * as api from "./api";
import { paint, theme } from "./colour";
import { ravel, unravel } from "./format";
import type * as heat from "./heatmap";
import { MapView } from "./mapview";
import { useFetched } from "./maths";
import { navigate, route } from "./route";
import { current, inspect, recording, runs } from "./state";
import { tokenAt, tokensOf, type Tokens } from "./tokens";
import type { Flow, Maps, VersionDetail } from "./types";

const AXES = ["B", "NH", "T", "T"];
const sizes = [signal<[number, number]>([1, 1]), signal<[number, number]>([1, 1])];
/** The cell under the pointer: query and key. */
const hovered = signal<[number, number] | null>(null);

/** Which micro-batch the current event belongs to; the optimizer is none. */
const runNow = (): number => (current.value?.phase === "update" ? 0 : current.value?.run ?? 0);

export function Attention() {
  const r = route.value.r!;
  const run = runNow();
  const flow = useFetched<Flow>((signal) => api.flow(r, run, signal), `${r} ${run}`);
  if (!flow) return <section class="screen" aria-busy="true" />;
  const l = Math.min(route.value.l ?? current.value?.layer ?? 0, flow.maps.length - 1);
  const made = flow.maps[l];
  if (made.att === null) return <NotSpelledOut />;
  return <Loaded r={r} run={run} l={l} att={made.att} datt={made.datt} />;
}

function Loaded({ r, run, l, att, datt }: {
  r: string; run: number; l: number; att: number; datt: number | null;
}) {
  const map = useFetched<VersionDetail>((signal) => api.version(r, att, signal), `${r} ${att}`);
  const gradient = useFetched<VersionDetail | null>(
    async (signal) => (datt === null ? null : api.version(r, datt, signal)), `${r} ${datt}`);
  useEffect(() => void (hovered.value = null), [`${l} ${route.value.ix}`]);
  if (map?.id !== att) return <section class="screen" aria-busy="true" />;
  if (!map.stored) return <NotStored />;
  const [B, NH, T] = map.shape;
  const asked = route.value.ix?.length === 4 ? route.value.ix : [0, 0, 0, 0];
  const cursor = asked.map((n, i) => Math.max(0, Math.min(map.shape[i] - 1, n)));
  const [b, h] = cursor;
  const tokens = tokensOf(r, run);
  const [q, k] = hovered.value ?? [cursor[2], cursor[3]];
  const cell = [b, h, Math.min(q, T - 1), Math.min(k, T - 1)];
  const both = [map, gradient?.id === datt ? gradient : null];
  return (
    <section class="screen attention" aria-label="Attention" data-layer={l} data-head={h}>
      <div class="heads">
        <h1>Attention</h1>
        <p class="muted">Layers run down, heads across; each row of a map is a query.</p>
        {B > 1 && <Sequence count={B} b={b} />}
        <Grid r={r} run={run} b={b} l={l} h={h} heads={NH} />
      </div>
      <Readout r={r} l={l} cell={cell} both={both} tokens={tokens} />
      {both.map((detail, i) => (
        <div class="one-map" key={i}>
          <h2>{i ? "dAtt, the gradient of the loss" : "Att"}
            {detail && <button class="plain" onClick={() => inspect(detail.id, cursor)}
              title="With statistics and a table of numbers">inspector</button>}
          </h2>
          {detail?.stored ? (
            <MapView subject={subject(r, detail, b, h)} detail={detail} planes={null}
              tokens={tokens} cursor={cursor} spoken={words(cursor, tokens)} size={sizes[i]}
              onHover={(at) => {
                hovered.value = at && unravel(detail.shape, ...at).slice(2) as [number, number];
              }} />
          ) : <p class="muted">{datt === null ? "the backward pass was not recorded" : ""}</p>}
        </div>
      ))}
    </section>
  );
}

/** One head's map. */
function subject(r: string, v: VersionDetail, b: number, h: number): heat.Subject {
  const [, NH, T, keys] = v.shape;
  const from = (b * NH + h) * T;
  const top = Math.max(Math.abs(v.statistics.min), Math.abs(v.statistics.max));
  return {
    r, v: v.id, before: null, beforeR: r, sign: 1, rows: v.shape[0] * NH * T, columns: keys, from, to: from + T,
    fixed: 2, stored: v.stored, pictured: v.pictured, plane: "mean",
    scale: { top: top || 1, root: true },
  };
}

const token = (tokens: Tokens | null, cell: number[], axis: number): string =>
  tokenAt(tokens, AXES, cell, axis);

const words = (cell: number[], tokens: Tokens | null): string =>
  `query ${cell[2]} “${token(tokens, cell, 2)}”, key ${cell[3]} “${token(tokens, cell, 3)}”`;

function Readout({ r, l, cell, both, tokens }: {
  r: string; l: number; cell: number[]; both: (VersionDetail | null)[]; tokens: Tokens | null;
}) {
  const [weight, gradient] = both.map((detail) => useNumber(r, detail, cell));
  return (
    <p class="readout-row" aria-live="polite">
      <b>layer {l} · head {cell[1]}</b>
      <span>query <q data-testid="query">{token(tokens, cell, 2)}</q> <i class="num">{cell[2]}</i></span>
      <span>key <q data-testid="key">{token(tokens, cell, 3)}</q> <i class="num">{cell[3]}</i></span>
      <span>weight <output class="num" data-testid="weight">{weight}</output></span>
      <span>d weight <output class="num" data-testid="weight-gradient">{gradient}</output></span>
    </p>
  );
}

/** The exact number of a cell; … until it is there. */
function useNumber(r: string, detail: VersionDetail | null, cell: number[]): string {
  const key = `${r} ${detail?.id} ${cell}`;
  const found = useFetched<{ key: string; text: string }>(async (signal) => {
    if (!detail?.stored) return { key, text: "–" };
    const { row, column } = ravel(detail.shape, cell);
    return { key, text: (await api.cells(r, detail.id, row, column, 1, 1, signal))[0][0] };
  }, key);
  return found?.key === key ? found.text : "…";
}

function Sequence({ count, b }: { count: number; b: number }) {
  return (
    <label class="slice">
      sequence{" "}
      <select value={b} onChange={(e) => navigate({ ix: [Number(e.currentTarget.value), 0, 0, 0] })}>
        {Array.from({ length: count }, (_, n) => <option value={n} key={n}>{n}</option>)}
      </select>
    </label>
  );
}

// ------------------------------------------------------------ all maps

function Grid({ r, run, b, l, h, heads }: {
  r: string; run: number; b: number; l: number; h: number; heads: number;
}) {
  const key = `${r} ${run} ${b}`;
  const maps = useFetched<Maps>((signal) => api.maps(r, "att", run, b, signal), key);
  const layers = maps?.layers ?? 0;
  const choose = (layer: number, head: number) => navigate({
    l: Math.max(0, Math.min(layers - 1, layer)),
    ix: [b, Math.max(0, Math.min(heads - 1, head)), 0, 0], z: null,
  });
  const keys = (e: KeyboardEvent) => {
    const [down, across] = ({
      ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
    } as Record<string, number[]>)[e.key] ?? [0, 0];
    if ((!down && !across) || e.shiftKey) return;
    e.preventDefault();
    e.stopPropagation();
    const grid = e.currentTarget as HTMLElement;
    choose(l + down, h + across);
    requestAnimationFrame(() => grid.querySelector<HTMLElement>("[tabindex='0']")?.focus());
  };
  return (
    <div class="head-grid" role="grid" aria-label="Maps of all layers and heads" onKeyDown={keys}
      style={{ "--heads": heads }}>
      {Array.from({ length: layers }, (_, layer) => (
        <div role="row" key={layer}>
          <span role="rowheader" class="num muted">{layer}</span>
          {Array.from({ length: heads }, (_, head) => {
            const on = layer === l && head === h;
            return (
              <button role="gridcell" key={head} tabIndex={on ? 0 : -1} aria-selected={on}
                aria-label={`layer ${layer}, head ${head}`} onClick={() => choose(layer, head)}>
                <Small maps={maps!} index={layer * heads + head} />
              </button>
            );
          })}
        </div>
      ))}
    </div>
  );
}

function Small({ maps, index }: { maps: Maps; index: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const mode = theme();
  useEffect(() => {
    const { width, height, largest } = maps;
    const values = maps.values.subarray(index * width * height, (index + 1) * width * height);
    const image = paint(values, null, width, height, { top: largest, root: true });
    canvas.current!.getContext("2d")!.putImageData(image, 0, 0);
  }, [maps, index, mode]);
  return <canvas ref={canvas} width={maps.width} height={maps.height} aria-hidden="true" />;
}

// ------------------------------------------------------------ nothing to show

function NotStored() {
  const m = recording.value!.manifest;
  const run = runs.value?.find((x) => x.recordings.some((y) => y.id === route.value.r));
  return (
    <section class="empty-state">
      <h2>The attention maps were not stored</h2>
      <p>This step was recorded at level {m.level}. To see them, record it with them:</p>
      <p><code>backglass trace {run?.name ?? "RUN"} --step {m.step} --level 2 --tensors
        '*.att,*.datt'</code></p>
    </section>
  );
}

function NotSpelledOut() {
  const m = recording.value!.manifest;
  return (
    <section class="empty-state">
      <h2>No attention weights in this recording</h2>
      <p>
        {m.level === 0
          ? "At level 0 the run's own program is recorded, and its attention never writes them down."
          : "It ended before the first of them."} Levels 1 to 3 spell attention out.
      </p>
    </section>
  );
}
