/** Two recordings held against each other, and a step done again with one number changed. */

import { computed, effect, signal } from "@preact/signals";

import * as api from "./api";
import { navigate, route } from "./route";
import { fail, loadRuns, runs, say } from "./state";
import type { Fork, Recording, RecordingInfo, VersionDetail } from "./types";

export interface Difference {
  tensor: string;
  error: number | string | null;
  largest: number | string | null;
  at: number[] | null;
  norms: [number, number];
  ulp: number | null;
  values: [number | string, number | string] | null;
  ids: [number, number];
}

export interface Comparison {
  a: string;
  b: string;
  state: "running" | "done" | "failed";
  unlike: string[];
  before: Difference[];
  cut: number | null;
  /** What differs in each event; not there: not compared yet, or not in both. */
  found: Difference[][];
  compared: number;
  equal: boolean;
  why: string;
}

export const comparison = signal<Comparison | null>(null);
/** The other recording, for its loss. */
export const other = signal<Recording | null>(null);

export interface Listed extends RecordingInfo {
  run: string;
}

export const listed = computed<Listed[]>(() =>
  (runs.value ?? []).flatMap((run) => run.recordings.map((x) => ({ ...x, run: run.name }))));

export const infoOf = (id: string | null): Listed | undefined =>
  listed.value.find((x) => x.id === id);

export const editText = (fork: Fork): string => {
  const e = fork.edits[fork.edits.length - 1];
  const more = fork.edits.length > 1 ? ` and ${fork.edits.length - 1} more` : "";
  return `${e.tensor}[${e.index.join(",")}] = ${e.value}${more}`;
};

export function labelOf(x: Listed): string {
  const step = `step ${x.step.toLocaleString("en-US")}`;
  const own = /^step-\d+$/.test(x.name) || x.name === x.run ? [] : [x.name];
  return [x.run, ...(x.fork ? [`what if ${editText(x.fork)}`] : own), step].join(" · ");
}

/** The recording that a fork is of. */
export const parentOf = (x: Listed): Listed | undefined =>
  x.fork && listed.value.find((y) => y.run === x.run && y.name === x.fork!.of);

/** Whether b is a with something edited. */
export const isForkOf = (b: string | null, a: string | null): boolean => {
  const x = infoOf(b);
  return !!x && a !== null && parentOf(x)?.id === a;
};

// ------------------------------------------------------------ comparing

let stale = new AbortController();

async function compare(a: string, b: string): Promise<void> {
  stale.abort();
  const { signal: stop } = (stale = new AbortController());
  const now: Comparison = {
    a, b, state: "running", unlike: [], before: [], cut: null, found: [], compared: 0,
    equal: false, why: "",
  };
  comparison.value = now;
  other.value = null;
  let shown = 0;
  const show = (always = true) => {
    if (stop.aborted || !(always || performance.now() - shown > 60)) return;
    shown = performance.now();
    comparison.value = { ...now };
  };
  try {
    other.value = await api.recording(b);
    const path = `${api.of(a)}/compare/${encodeURIComponent(b)}`;
    await api.eachLine(await api.request(path, { signal: stop }), (row) => {
      if ("error" in row) throw new api.ApiError(422, String(row.error));
      if ("k" in row) now.found[Number(row.k)] = row.differences as Difference[];
      else Object.assign(now, row, "compared" in row ? { state: "done" } : {});
      show(false);
    });
  } catch (error) {
    if (api.aborted(error)) return;
    Object.assign(now, { state: "failed", why: (error as Error).message });
  }
  show();
}

/** Events that differ, in order. */
export const differing = computed(() => {
  const found: number[] = [];
  comparison.value?.found.forEach((d, k) => d.length && found.push(k));
  return found;
});

/** The largest error of an event; NaN is larger than any; null: values are not stored. */
export function errorOf(found: Difference[] | undefined): number | null {
  let top: number | null = found?.length ? null : 0;
  for (const d of found ?? []) {
    if (d.error === null) continue;
    const x = typeof d.error === "string" ? Infinity : d.error;
    top = Math.max(top ?? 0, x);
  }
  return top;
}

export const ulpOf = (found: Difference[]): number | null =>
  found.reduce<number | null>((top, d) => (d.ulp === null ? top : Math.max(top ?? 0, d.ulp)), null);

export function startComparing(): void {
  effect(() => {
    const { screen, r, vs } = route.value;
    const had = comparison.peek();
    if (screen !== "compare" || !r || !vs || (had?.a === r && had.b === vs)) return;
    void compare(r, vs);
  });
}

export function openCompare(a: string | null, b: string | null): void {
  navigate({ screen: "compare", r: a, vs: b, t: null, ix: null, sl: null, z: null });
}

/** From anywhere: with the open recording on the left. */
export function compareHere(): void {
  const { r, vs } = route.value;
  const a = r ?? listed.value[0]?.id ?? null;
  const parent = infoOf(a) && parentOf(infoOf(a)!);
  if (parent && !vs) openCompare(parent.id, a);
  else openCompare(a, vs ?? listed.value.find((x) => x.id !== a)?.id ?? null);
}

const named = (r: string, tensor: string, number: number, signal?: AbortSignal) =>
  api.cached(`${api.of(r)}/named/${encodeURIComponent(tensor)}?number=${number}`,
    api.asJson<VersionDetail>, signal);

/** The same version of the same tensor in another recording. */
export const counterpart = (v: VersionDetail, to: string, signal?: AbortSignal) =>
  named(to, v.tensor, v.number, signal);

/** The difference in the inspector: to the other recording, or to the version before. */
export function toggleDifference(): void {
  const { t, plane, screen, e, vs } = route.value;
  if (t !== null) navigate({ plane: plane === "difference" ? "mean" : "difference" });
  else if (screen === "compare" && comparison.value?.found[e]?.length) {
    lookAt(comparison.value.found[e][0]);
  } else say(vs ? "nothing differs in this event" : "open a tensor first (i)");
}

/** A tensor's difference, closely, at the cell where it is largest. */
export function lookAt(d: Difference): void {
  navigate({ screen: "", t: d.ids[0], ix: d.at, sl: null, z: null, plane: "difference" });
}

/** The step of the same run that was recorded before or after this one. */
export async function trainingStep(direction: 1 | -1): Promise<void> {
  const { r, t, e } = route.value;
  const here = infoOf(r);
  if (!here) return;
  const all = listed.value.filter((x) => x.run === here.run && !x.fork && x.id !== here.id)
    .filter((x) => (direction > 0 ? x.step > here.step : x.step < here.step))
    .sort((x, y) => direction * (x.step - y.step));
  if (!all.length) {
    say(`no ${direction > 0 ? "later" : "earlier"} step of ${here.run} is recorded`);
    return;
  }
  try {
    const same = t === null ? null : await counterpart(await api.version(r!, t), all[0].id);
    navigate({ r: all[0].id, e, t: same?.id ?? null, vs: null });
  } catch (error) {
    fail(error);
  }
}

// ------------------------------------------------------------ what if

export type Trial =
  | { state: "idle"; why: string }
  | { state: "running"; done: number; total: number };
export const trial = signal<Trial>({ state: "idle", why: "" });

/** Do the open step again with a cell changed, then compare. */
export async function whatIf(version: number, index: number[], value: string): Promise<boolean> {
  const { r } = route.value;
  if (r === null || trial.value.state === "running") return false;
  trial.value = { state: "running", done: 0, total: 0 };
  try {
    const made = await api.work<{ recording: string; event: number | null }>(
      `${api.of(r)}/what-if`,
      (done, total) => (trial.value = { state: "running", done, total }),
      { version, index, value });
    await loadRuns();
    trial.value = { state: "idle", why: "" };
    if (route.value.r === r) {
      openCompare(r, made.recording);
      navigate({ e: made.event ?? 0 });
    }
    return true;
  } catch (error) {
    trial.value = { state: "idle", why: (error as Error).message };
    return false;
  }
}

/** Delete a what-if and go back to what it is of, at the edited cell. */
export async function undo(b: string): Promise<void> {
  const x = infoOf(b);
  const parent = x && parentOf(x);
  if (!x?.fork || !parent) return;
  const e = x.fork.edits[x.fork.edits.length - 1];
  try {
    const found = await named(parent.id, e.tensor, e.number);
    await api.request(`${api.of(b)}/delete`, { method: "POST" });
    comparison.value = null;
    navigate({
      screen: "", r: parent.id, vs: null, e: x.fork.event ?? 0, t: found.id, ix: e.index,
      sl: null, z: null, plane: "mean",
    });
    await loadRuns();
    say(`undone: ${e.tensor}[${e.index.join(",")}] is what it was`);
  } catch (error) {
    fail(error);
  }
}

/** Delete a what-if. */
export async function discard(b: string): Promise<void> {
  try {
    await api.request(`${api.of(b)}/delete`, { method: "POST" });
    if (route.value.r === b || route.value.vs === b) navigate({ vs: null, screen: "" });
    await loadRuns();
  } catch (error) {
    fail(error);
  }
}
