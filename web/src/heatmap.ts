/** The tensor as a picture that can be entered: tiles at the level that the zoom asks for, down to
 * the numbers themselves.  A canvas, because a grid of elements cannot hold 38 million cells. */

import * as api from "./api";
import { badColour, darkBehind, paint, type Scale } from "./colour";
import { enlarged, short } from "./format";
import type { Planes, Tile } from "./types";

export const PLANES = ["mean", "min", "max", "bad"] as const;
export type Plane = (typeof PLANES)[number] | "difference";

/** x, y: the matrix cell at the top left; sx, sy: pixels a cell. */
export interface View {
  x: number;
  y: number;
  sx: number;
  sy: number;
}

export interface Subject {
  r: string;
  v: number;
  /** Of a difference: the version that is taken off, or (sign −1) that this one is taken off. */
  before: number | null;
  /** The recording that it is in. */
  beforeR: string;
  sign: 1 | -1;
  rows: number;
  columns: number;
  /** The rows shown: a slice by leading axes. */
  from: number;
  to: number;
  /** How many leading axes are fixed. */
  fixed: number;
  stored: boolean;
  pictured: boolean;
  plane: Plane;
  scale: Scale;
}

export const TILE = 128;
const BUDGET = 9e4; // bytes of tiles that one view may ask for; of a difference ten times as many
const CELL = sized(104, 24); // the deepest zoom: exact numbers fit
const EXACT = sized(84, 16);
const ROUGH = sized(50, 13);
const MARK = 3; // pixels that a bad cell has at least
const MARKS = 3000;

/** In pixels; more of them on a screen of 4K. */
function sized(width: number, height: number) {
  return {
    get width() { return width * enlarged(); },
    get height() { return height * enlarged(); },
  };
}

export function fit(s: Subject, width: number, height: number): View {
  const rows = s.to - s.from;
  const sx = Math.min(CELL.width, width / s.columns);
  const sy = Math.min(CELL.height, height / rows);
  return { x: (s.columns - width / sx) / 2, y: s.from + (rows - height / sy) / 2, sx, sy };
}

/** The view after zooming by `factor` around a pixel. */
export function zoomed(
  s: Subject, view: View, factor: number, px: number, py: number, width: number, height: number,
): View {
  const whole = fit(s, width, height);
  const sx = Math.max(whole.sx, Math.min(CELL.width, view.sx * factor));
  const sy = Math.max(whole.sy, Math.min(CELL.height, view.sy * factor));
  const cx = view.x + px / view.sx;
  const cy = view.y + py / view.sy;
  return held(s, { x: cx - px / sx, y: cy - py / sy, sx, sy }, width, height);
}

/** The view kept on the tensor: centred where it is smaller than the window. */
export function held(s: Subject, view: View, width: number, height: number): View {
  const { sx, sy } = view;
  const rows = s.to - s.from;
  const across = width / sx;
  const down = height / sy;
  const x = across >= s.columns ? (s.columns - across) / 2
    : Math.max(0, Math.min(s.columns - across, view.x));
  const y = down >= rows ? s.from + (rows - down) / 2
    : Math.max(s.from, Math.min(s.to - down, view.y));
  return { x, y, sx, sy };
}

interface Area {
  r0: number;
  r1: number;
  c0: number;
  c1: number;
}

function seen(s: Subject, v: View, width: number, height: number): Area {
  return {
    r0: Math.max(s.from, Math.floor(v.y)),
    r1: Math.min(s.to, s.rows, Math.ceil(v.y + height / v.sy)),
    c0: Math.max(0, Math.floor(v.x)), c1: Math.min(s.columns, Math.ceil(v.x + width / v.sx)),
  };
}

/** The finest level that shows no more than the screen can and stays in the budget. */
export function levelOf(s: Subject, view: View, width: number, height: number): number {
  const a = seen(s, view, width, height);
  const top = Math.max(0, Math.ceil(Math.log2(Math.max(s.rows, s.columns) / TILE)));
  let level = Math.max(0, Math.floor(Math.log2(Math.min(1 / view.sx, 1 / view.sy))));
  const cost = (l: number) =>
    ((a.r1 - a.r0) >> l) * ((a.c1 - a.c0) >> l || 1) * (sentPlane(s) ? 1 : (l ? 3.2 : 0.8));
  while (level < top && cost(level) > BUDGET) level++;
  return Math.min(level, top);
}

/** What is fetched of a tile: the plane to be painted, where what is not finite is NaN; all of it
 * for a difference, which is of the numbers. */
export const sentPlane = (s: Subject): string | null =>
  (s.plane === "difference" ? null : s.plane === "bad" ? "mean" : s.plane);

export interface Piece {
  level: number;
  i: number;
  j: number;
}

/** The tiles that a view needs. */
export function pieces(s: Subject, view: View, width: number, height: number): Piece[] {
  if (!s.stored) return [];
  const level = levelOf(s, view, width, height);
  const a = seen(s, view, width, height);
  const side = TILE << level;
  const found: Piece[] = [];
  for (let i = Math.floor(a.r0 / side); i * side < a.r1; i++) {
    for (let j = Math.floor(a.c0 / side); j * side < a.c1; j++) found.push({ level, i, j });
  }
  return found;
}

const painted = new WeakMap<Tile | Planes, { key: string; canvas: OffscreenCanvas }>();

/** The tile as an image, painted once for each plane and scale. */
function image(s: Subject, tile: Tile, before: Tile | null, mode: string): OffscreenCanvas {
  const key = `${s.plane} ${s.scale.top} ${s.scale.root} ${mode} ${before ? `${s.beforeR} ${s.before}` : ""}`;
  const had = painted.get(tile);
  if (had?.key === key) return had.canvas;
  const canvas = new OffscreenCanvas(tile.width, tile.height);
  const [values, bad] = numbers(s, tile, before);
  canvas.getContext("2d")!.putImageData(
    paint(values, bad, tile.width, tile.height, s.scale), 0, 0);
  painted.set(tile, { key, canvas });
  return canvas;
}

/** What a tile shows: numbers, and behind which of them something is not finite. */
export function numbers(
  s: Subject, tile: Tile, before: Tile | null,
): [Float32Array, Float32Array | null] {
  const of = (t: Tile) => t.values ?? (t.planes as unknown as Record<string, Float32Array>)[
    s.plane === "difference" || s.plane === "bad" ? "mean" : s.plane];
  if (s.plane === "difference" && before) {
    const b = of(before);
    return [of(tile).map((x, i) => s.sign * (x - b[i])), null];
  }
  if (s.plane === "bad") {
    return [new Float32Array(tile.width * tile.height), tile.planes?.bad ?? badOf(tile.values!)];
  }
  return [of(tile), tile.planes?.bad ?? null];
}

const badOf = (values: Float32Array) => values.map((x) => (Number.isFinite(x) ? 0 : 1));

export interface Drawing {
  context: CanvasRenderingContext2D;
  width: number;
  height: number;
  mode: string;
  ink: string;
  paper: string;
  font: string;
}

/** Draw what is there; returns whether everything was. */
export function draw(
  d: Drawing, s: Subject, view: View, planes: Planes | null, cursor: [number, number] | null,
  exact: ExactText | null,
): boolean {
  const { context: c } = d;
  c.clearRect(0, 0, d.width, d.height);
  const box = rectangle(view, { r0: s.from, r1: s.to, c0: 0, c1: s.columns });
  c.save();
  const inside: [number, number, number, number] = [0, 0, d.width, d.height];
  for (const area of [inside, box]) {
    c.beginPath();
    c.rect(...area);
    c.clip();
  }
  const wanted = pieces(s, view, d.width, d.height);
  const ready = wanted.map((p) => tileAt(s, p));
  const complete = ready.every(Boolean);
  if (planes && !(s.stored && complete)) overview(d, s, view, planes);
  wanted.forEach((p, n) => ready[n] && piece(d, s, view, p, ...ready[n]!));
  if (view.sx >= ROUGH.width && view.sy >= ROUGH.height) text(d, s, view, exact);
  c.restore();
  if (cursor) outline(d, view, cursor);
  return complete;
}

function tileAt(s: Subject, p: Piece): [Tile, Tile | null] | null {
  const tile = api.heldTile(s.r, s.v, p.level, p.i, p.j, sentPlane(s));
  if (!tile) return null;
  if (s.before === null || s.plane !== "difference") return [tile, null];
  const before = api.heldTile(s.beforeR, s.before, p.level, p.i, p.j, null);
  return before ? [tile, before] : null;
}

function rectangle(v: View, a: Area): [number, number, number, number] {
  return [(a.c0 - v.x) * v.sx, (a.r0 - v.y) * v.sy, (a.c1 - a.c0) * v.sx, (a.r1 - a.r0) * v.sy];
}

/** The 32 × 32 picture that is always there, while tiles come. */
function overview(d: Drawing, s: Subject, view: View, p: Planes): void {
  if (s.plane === "difference") return;
  const whole = { height: p.down, width: p.across, values: null, planes: p };
  const canvas = new OffscreenCanvas(p.across, p.down);
  const [values, bad] = numbers(s, whole, null);
  canvas.getContext("2d")!.putImageData(paint(values, bad, p.across, p.down, s.scale), 0, 0);
  d.context.imageSmoothingEnabled = false;
  d.context.drawImage(
    canvas, ...rectangle(view, { r0: 0, r1: s.rows, c0: 0, c1: s.columns }));
}

function piece(
  d: Drawing, s: Subject, view: View, p: Piece, tile: Tile, before: Tile | null,
): void {
  const step = 1 << p.level;
  const r0 = p.i * TILE * step;
  const c0 = p.j * TILE * step;
  const scaleX = step * view.sx;
  const scaleY = step * view.sy;
  d.context.imageSmoothingEnabled = scaleX < 1 || scaleY < 1;
  const x = (c0 - view.x) * view.sx;
  const y = (r0 - view.y) * view.sy;
  d.context.drawImage(
    image(s, tile, before, d.mode), x, y, tile.width * scaleX, tile.height * scaleY);
  marks(d, tile, x, y, scaleX, scaleY);
}

/** A cell that is not finite is never smaller than a few pixels. */
function marks(
  d: Drawing, tile: Tile, x: number, y: number, scaleX: number, scaleY: number,
): void {
  if (scaleX >= MARK && scaleY >= MARK) return;
  const bad = badCells(tile);
  d.context.fillStyle = badColour();
  for (const i of bad.slice(0, MARKS)) {
    const w = Math.max(MARK, scaleX);
    const h = Math.max(MARK, scaleY);
    const cx = x + ((i % tile.width) + 0.5) * scaleX;
    const cy = y + (Math.floor(i / tile.width) + 0.5) * scaleY;
    d.context.fillRect(cx - w / 2, cy - h / 2, w, h);
  }
}

const badOfTile = new WeakMap<Tile, number[]>();

function badCells(tile: Tile): number[] {
  const had = badOfTile.get(tile);
  if (had) return had;
  const found: number[] = [];
  const of = tile.planes?.bad ?? badOf(tile.values!);
  of.forEach((n, i) => n > 0 && found.push(i));
  badOfTile.set(tile, found);
  return found;
}

/** Exact numbers of a window of the tensor. */
export interface ExactText {
  row: number;
  column: number;
  values: string[][];
}

/** The window whose exact numbers a view would show, or null: too far away. */
export function window(
  s: Subject, view: View, width: number, height: number,
): { row: number; column: number; height: number; width: number } | null {
  if (!s.stored || view.sx < ROUGH.width || view.sy < ROUGH.height) return null;
  const a = seen(s, view, width, height);
  const found = { row: a.r0, column: a.c0, height: a.r1 - a.r0, width: a.c1 - a.c0 };
  return found.height * found.width <= 4096 ? found : null;
}

function text(d: Drawing, s: Subject, view: View, exact: ExactText | null): void {
  const a = seen(s, view, d.width, d.height);
  const { context: c } = d;
  const small = view.sx < EXACT.width;
  c.font = `${(small ? 10 : 11) * enlarged()}px ${d.font}`;
  c.textAlign = "center";
  c.textBaseline = "middle";
  for (let row = a.r0; row < a.r1; row++) {
    for (let column = a.c0; column < a.c1; column++) {
      const x = at(s, row, column);
      const known = exact?.values[row - exact.row]?.[column - exact.column];
      const words = known ?? (x === null || sentPlane(s) ? "" : short(x));
      const px = (column + 0.5 - view.x) * view.sx;
      const py = (row + 0.5 - view.y) * view.sy;
      const light = x !== null && (!Number.isFinite(x) || darkBehind(x, s.scale));
      c.fillStyle = light ? "#fff" : "#1d1c1a";
      c.fillText(small && words ? short(Number(words)) : words, px, py, view.sx - 4);
    }
  }
}

/** The number of a cell, if its tile is there. */
export function at(s: Subject, row: number, column: number): number | null {
  const i = Math.floor(row / TILE);
  const j = Math.floor(column / TILE);
  const tile = tileAt(s, { level: 0, i, j });
  if (!tile?.[0].values) return null;
  const k = (row - i * TILE) * tile[0].width + column - j * TILE;
  const x = tile[0].values[k];
  return tile[1]?.values ? s.sign * (x - tile[1].values[k]) : x;
}

function outline(d: Drawing, view: View, [row, column]: [number, number]): void {
  const { context: c } = d;
  const w = Math.max(5, view.sx);
  const h = Math.max(5, view.sy);
  const x = (column + 0.5 - view.x) * view.sx - w / 2;
  const y = (row + 0.5 - view.y) * view.sy - h / 2;
  c.lineWidth = 3;
  c.strokeStyle = d.paper;
  c.strokeRect(x, y, w, h);
  c.lineWidth = 1.5;
  c.strokeStyle = d.ink;
  c.strokeRect(x, y, w, h);
}
