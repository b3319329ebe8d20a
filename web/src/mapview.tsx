/** The heatmap on the screen: canvas, rulers, pointer and keys. */

import { signal, type Signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import * as api from "./api";
import { theme } from "./colour";
import { axes, enlarged, letter, ravel, unravel } from "./format";
import * as heat from "./heatmap";
import { navigate, route } from "./route";
import { closeTensor } from "./state";
import { tokenAt, type Tokens } from "./tokens";
import type { Planes, VersionDetail } from "./types";

export const MARGIN = {
  get left() { return 78 * enlarged(); },
  get top() { return 28 * enlarged(); },
};

/** Rises when a tile has come. */
const arrived = signal(0);
type Coming = Map<string, AbortController>;

/** Fetch the tiles of a view; those that an earlier view wanted and this does not are stopped. */
function fetchTiles(coming: Coming, s: heat.Subject, wanted: heat.Piece[]): void {
  const versions: [string, number][] = [[s.r, s.v]];
  if (s.plane === "difference" && s.before !== null) versions.push([s.beforeR, s.before]);
  const keys = new Set<string>();
  const plane = heat.sentPlane(s);
  for (const [r, v] of versions) {
    for (const { level, i, j } of wanted) {
      const key = `${r} ${v} ${level} ${i} ${j} ${plane}`;
      keys.add(key);
      if (coming.has(key) || api.heldTile(r, v, level, i, j, plane)) continue;
      const fetching = new AbortController();
      coming.set(key, fetching);
      api.tile(r, v, level, i, j, plane, fetching.signal)
        .then(() => arrived.value++, () => null)
        .finally(() => coming.delete(key));
    }
  }
  for (const [key, fetching] of coming) if (!keys.has(key)) fetching.abort();
}

export interface MapProps {
  subject: heat.Subject;
  detail: VersionDetail;
  planes: Planes | null;
  tokens: Tokens | null;
  cursor: number[];
  spoken: string;
  size: Signal<[number, number]>;
  /** Told the row and column under the pointer; null when it has left. */
  onHover?: (cell: [number, number] | null) => void;
}

export function MapView(props: MapProps) {
  const { subject: s, detail, planes, tokens, cursor, spoken, size, onHover } = props;
  const box = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const exact = useExact(s, size.value);
  const [width, height] = size.value;
  const cell = ravel(detail.shape, cursor);
  const view = viewOf(s, width, height);
  useEffect(() => {
    const watch = new ResizeObserver(([b]) => {
      size.value = [
        Math.max(1, Math.floor(b.contentRect.width) - MARGIN.left),
        Math.max(1, Math.floor(b.contentRect.height) - MARGIN.top)];
    });
    watch.observe(box.current!);
    return () => watch.disconnect();
  }, []);
  const coming = useRef<Coming>(new Map());
  useEffect(() => fetchTiles(coming.current, s, heat.pieces(s, view, width, height)));
  const mode = theme();
  void arrived.value;
  useEffect(() => {
    const d = drawing(canvas.current!, width, height, mode);
    heat.draw(d, s, view, planes, [cell.row, cell.column], exact);
    rulers(d, s, view, detail, tokens);
  });
  return (
    <div ref={box} class="heatmap" role="grid" tabIndex={0} data-testid="heatmap"
      aria-label={`${detail.tensor} as ${s.rows} rows by ${s.columns} columns`}
      aria-rowcount={s.rows} aria-colcount={s.columns} aria-activedescendant="cell-now"
      onKeyDown={(e) => keys(e, s, detail, cell, view, width, height)}>
      <canvas ref={canvas} aria-hidden="true" {...pointer(s, detail, view, width, height)}
        onPointerMove={(e) => onHover && hover(e, s, view, onHover)}
        onPointerLeave={() => onHover?.(null)} />
      <div role="row" class="unseen">
        <div role="gridcell" id="cell-now" aria-rowindex={cell.row + 1}
          aria-colindex={cell.column + 1} aria-live="polite">{spoken}</div>
      </div>
    </div>
  );
}

/** The view of the address, or the whole. */
export function viewOf(s: heat.Subject, width: number, height: number): heat.View {
  const z = route.value.z;
  if (!z || z.length !== 4 || z[2] <= 0 || z[3] <= 0) return heat.fit(s, width, height);
  return heat.held(s, { x: z[0], y: z[1], sx: z[2], sy: z[3] }, width, height);
}

const setView = (v: heat.View | null): void =>
  navigate({ z: v ? [v.x, v.y, v.sx, v.sy] : null });

/** Exact numbers of what is seen, when it is seen closely enough. */
function useExact(s: heat.Subject, [width, height]: [number, number]): heat.ExactText | null {
  const [found, setFound] = useState<(heat.ExactText & { v: number }) | null>(null);
  const w = s.plane === "difference" ? null : heat.window(s, viewOf(s, width, height), width, height);
  const key = w ? `${s.r} ${s.v} ${w.row} ${w.column} ${w.height} ${w.width}` : "";
  useEffect(() => {
    if (!w) return;
    const fetching = new AbortController();
    const wait = setTimeout(() => {
      api.cells(s.r, s.v, w.row, w.column, w.height, w.width, fetching.signal)
        .then((values) => setFound({ v: s.v, row: w.row, column: w.column, values }), () => null);
    }, 60);
    return () => (clearTimeout(wait), fetching.abort());
  }, [key]);
  return w && found?.v === s.v ? found : null;
}

function drawing(
  canvas: HTMLCanvasElement, width: number, height: number, mode: string,
): heat.Drawing {
  const ratio = devicePixelRatio;
  const [w, h] = [width + MARGIN.left, height + MARGIN.top];
  if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
    canvas.width = Math.round(w * ratio);
    canvas.height = Math.round(h * ratio);
    canvas.style.width = `${w}px`;
    canvas.style.height = `${h}px`;
  }
  const context = canvas.getContext("2d")!;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, w, h);
  context.translate(MARGIN.left, MARGIN.top);
  const style = getComputedStyle(canvas);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  return {
    context, width, height, mode, ink: colour("ink"), paper: colour("paper"),
    font: style.getPropertyValue("--mono"),
  };
}

/** Labels of rows and columns: indices, and tokens along T. */
function rulers(
  d: heat.Drawing, s: heat.Subject, v: heat.View, detail: VersionDetail, tokens: Tokens | null,
): void {
  const { context: c } = d;
  const names = axes(detail.dims, detail.shape);
  const last = names.length - 1;
  c.font = `${10.5 * enlarged()}px ${d.font}`;
  c.fillStyle = getComputedStyle(c.canvas).getPropertyValue("--muted");
  c.textBaseline = "middle";
  c.textAlign = "right";
  const rowStep = round((13 * enlarged()) / v.sy);
  const free = s.fixed;
  const firstRow = Math.max(s.from, Math.floor(v.y));
  for (let row = Math.ceil(firstRow / rowStep) * rowStep; row < s.to; row += rowStep) {
    const y = (row + 0.5 - v.y) * v.sy;
    if (y > d.height) break;
    const index = unravel(detail.shape, row, 0);
    const token = rowStep === 1 || v.sy >= 11 * enlarged()
      ? tokenAt(tokens, names.slice(0, last), index, names.lastIndexOf("T", last - 1)) : "";
    const near = index.slice(free, last).slice(-3).join(",") || `${row}`;
    c.fillText(token ? `${token}  ${near}` : near, -7 * enlarged(), y, MARGIN.left - 10);
  }
  columnRuler(d, s, v, names, tokens, unravel(detail.shape, s.from, 0));
  c.textAlign = "left";
  const rows = names.slice(free, last).map(letter).join(",");
  c.fillText(`${rows && `${rows}↓ `}${letter(names[last] ?? "")}→`, -MARGIN.left + 2, -18 * enlarged(), MARGIN.left - 12);
}

function columnRuler(
  d: heat.Drawing, s: heat.Subject, v: heat.View, names: string[], tokens: Tokens | null,
  index: number[],
): void {
  const { context: c } = d;
  const last = names.length - 1;
  const fixed = s.fixed > 0;
  const digits = (`${s.columns}`.length * 7 + 14) * enlarged();
  const worded = fixed && tokens && names[last] === "T" && v.sx >= 14 * enlarged();
  const step = worded ? 1 : round(digits / v.sx);
  c.textAlign = "center";
  const first = Math.max(0, Math.floor(v.x));
  for (let k = Math.ceil(first / step) * step; k < s.columns; k += step) {
    const x = (k + 0.5 - v.x) * v.sx;
    if (x > d.width - 8) break;
    const at = index.with(last, k);
    c.fillText((worded && tokenAt(tokens, names, at, last)) || `${k}`, x, -11 * enlarged());
  }
}

/** The next of 1, 2, 5, 10, 20, … */
function round(x: number): number {
  for (let unit = 1; ; unit *= 10) {
    for (const n of [1, 2, 5]) if (n * unit >= x) return n * unit;
  }
}

// ------------------------------------------------------------ pointer and keys

function pointer(
  s: heat.Subject, detail: VersionDetail, view: heat.View, width: number, height: number,
) {
  const place = (e: MouseEvent): [number, number] => {
    const r = (e.currentTarget as HTMLElement).getBoundingClientRect();
    return [e.clientX - r.left - MARGIN.left, e.clientY - r.top - MARGIN.top];
  };
  return {
    onWheel: (e: WheelEvent) => {
      e.preventDefault();
      const [x, y] = place(e);
      setView(heat.zoomed(s, view, Math.exp(-e.deltaY / 300), x, y, width, height));
    },
    onPointerDown: (e: PointerEvent) => drag(e, s, detail, view, place(e), width, height),
    onDblClick: (e: MouseEvent) => {
      const [x, y] = place(e);
      setView(heat.zoomed(s, view, 4, x, y, width, height));
    },
  };
}

function hover(
  e: PointerEvent, s: heat.Subject, view: heat.View, tell: (cell: [number, number]) => void,
): void {
  const box = (e.currentTarget as HTMLElement).getBoundingClientRect();
  const row = Math.floor(view.y + (e.clientY - box.top - MARGIN.top) / view.sy);
  const column = Math.floor(view.x + (e.clientX - box.left - MARGIN.left) / view.sx);
  const inside = row >= s.from && row < s.to && column >= 0 && column < s.columns;
  if (inside && !e.buttons) tell([row, column]);
}

/** Pressing and moving pans; pressing alone puts the cursor. */
function drag(
  e: PointerEvent, s: heat.Subject, detail: VersionDetail, view: heat.View,
  [x0, y0]: [number, number], width: number, height: number,
): void {
  const target = e.currentTarget as HTMLElement;
  const [startX, startY] = [e.clientX, e.clientY];
  let moved = false;
  target.setPointerCapture(e.pointerId);
  const move = (m: PointerEvent) => {
    const [dx, dy] = [m.clientX - startX, m.clientY - startY];
    moved ||= Math.hypot(dx, dy) > 4;
    if (moved) {
      const to = { ...view, x: view.x - dx / view.sx, y: view.y - dy / view.sy };
      setView(heat.held(s, to, width, height));
    }
  };
  const end = () => {
    target.removeEventListener("pointermove", move);
    if (moved) return;
    const row = Math.floor(view.y + y0 / view.sy);
    const column = Math.floor(view.x + x0 / view.sx);
    if (row >= s.from && row < s.to && column >= 0 && column < s.columns) {
      navigate({ ix: unravel(detail.shape, row, column) });
    }
  };
  target.addEventListener("pointermove", move);
  target.addEventListener("pointerup", end, { once: true });
}

const ZOOM = 1.5;

function keys(
  e: KeyboardEvent, s: heat.Subject, detail: VersionDetail, cell: { row: number; column: number },
  view: heat.View, width: number, height: number,
): void {
  if (e.ctrlKey || e.metaKey || e.altKey || e.shiftKey && e.key !== "+") return;
  let { row, column } = cell;
  const x = (column + 0.5 - view.x) * view.sx;
  const y = (row + 0.5 - view.y) * view.sy;
  const zoom = (factor: number) => setView(heat.zoomed(s, view, factor, x, y, width, height));
  const page = Math.max(1, Math.floor(height / view.sy / 2));
  if (e.key === "ArrowLeft") column--;
  else if (e.key === "ArrowRight") column++;
  else if (e.key === "ArrowUp") row--;
  else if (e.key === "ArrowDown") row++;
  else if (e.key === "PageUp") row -= page;
  else if (e.key === "PageDown") row += page;
  else if (e.key === "Home") column = 0;
  else if (e.key === "End") column = s.columns - 1;
  else if (e.key === "+" || e.key === "=") zoom(ZOOM);
  else if (e.key === "-") zoom(1 / ZOOM);
  else if (e.key === "0") setView(null);
  else if (e.key === "Escape" && !route.value.screen) closeTensor();
  else return;
  e.preventDefault();
  e.stopPropagation();
  if (row !== cell.row || column !== cell.column) {
    moveTo(s, detail, row, column, view, width, height);
  }
}

/** Put the cursor on a cell and bring it into sight. */
export function moveTo(
  s: heat.Subject, detail: VersionDetail, row: number, column: number, view: heat.View,
  width: number, height: number,
): void {
  row = Math.max(s.from, Math.min(s.to - 1, row));
  column = Math.max(0, Math.min(s.columns - 1, column));
  const down = height / view.sy;
  const across = width / view.sx;
  const to = { ...view };
  if (row < view.y) to.y = row;
  if (row + 1 > view.y + down) to.y = row + 1 - down;
  if (column < view.x) to.x = column;
  if (column + 1 > view.x + across) to.x = column + 1 - across;
  navigate({ ix: unravel(detail.shape, row, column) });
  if (to.x !== view.x || to.y !== view.y) setView(heat.held(s, to, width, height));
}
