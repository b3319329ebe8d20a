/** What a tensor's difference is taken to, and how large it is. */

import * as api from "./api";
import { counterpart } from "./comparing";
import { matrix, ravel } from "./format";
import type { Subject } from "./heatmap";
import { useFetched } from "./maths";
import { TILE } from "./heatmap";
import { route } from "./route";
import type { VersionDetail } from "./types";

/** What the difference is to: the same version in the other recording, or the version before. */
export interface Against {
  r: string;
  v: number;
  sign: 1 | -1;
}

export function useAgainst(r: string, detail: VersionDetail): Against | null {
  const { vs } = route.value;
  const key = vs ? `${vs} ${detail.tensor} ${detail.number}` : "";
  const same = useFetched<{ key: string; v: VersionDetail | null }>(async (signal) => ({
    key, v: key ? await counterpart(detail, vs!, signal).catch((e) => {
      if (api.aborted(e)) throw e;
      return null;
    }) : null,
  }), key);
  if (!detail.stored) return null;
  if (!vs) return detail.previous === null ? null : { r, v: detail.previous, sign: 1 };
  const found = same?.key === key ? same.v : null;
  const fits = found?.stored && found.shape.join() === detail.shape.join();
  return fits ? { r: vs, v: found.id, sign: -1 } : null;
}

/** The largest difference, as the coarsest tile shows it. */
export function useDifferenceTop(r: string, detail: VersionDetail, against: Against | null): number {
  const on = route.value.plane === "difference" && against !== null;
  const { rows, columns } = matrix(detail.shape);
  const level = Math.max(0, Math.ceil(Math.log2(Math.max(rows, columns) / TILE)));
  const key = on ? `${r} ${detail.id} ${against.r} ${against.v}` : "";
  return useFetched<number>(async (signal) => {
    if (!key) return 1;
    const [a, b] = await Promise.all([
      api.tile(r, detail.id, level, 0, 0, null, signal),
      api.tile(against!.r, against!.v, level, 0, 0, null, signal)]);
    const of = (x: typeof a) => x.values ?? x.planes!.mean;
    let top = 0;
    of(a).forEach((x, i) => {
      const d = Math.abs(x - of(b)[i]);
      if (Number.isFinite(d)) top = Math.max(top, d);
    });
    return top;
  }, key) ?? 1;
}

/** The server writes what is not finite in words. */
export const number = (text: string): number =>
  ({ inf: Infinity, "-inf": -Infinity } as Record<string, number>)[text] ?? Number(text);

export function useBefore(s: Subject, detail: VersionDetail, cursor: number[]): string | null {
  const { row, column } = ravel(detail.shape, cursor);
  const key = s.before === null ? "" : `${s.beforeR} ${s.before} ${row} ${column}`;
  return useFetched<string | null>(async (signal) => (key
    ? (await api.cells(s.beforeR, s.before!, row, column, 1, 1, signal))[0][0] : null), key);
}
