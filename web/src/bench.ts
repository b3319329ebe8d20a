/** The gradient bench: what is being checked, and what was found. */

import { computed, signal } from "@preact/signals";

import * as api from "./api";
import { ravel } from "./format";
import { navigate, route } from "./route";
import { at, current, say } from "./state";
import type {
  BenchOperand, BenchPlan, Judged, KernelCheck, MathsCheck, ModelCheck, Real, Steps,
} from "./types";

export type What = "maths" | "kernel" | "steps" | "model";

interface Found { maths: MathsCheck; kernel: KernelCheck; steps: Steps; model: ModelCheck }

export interface Running {
  what: What;
  done: number;
  total: number;
  since: number;
  stop: AbortController;
}

export const running = signal<Running | null>(null);
/** Whether the checks of an event are under way, one after the other. */
export const checking = signal(false);

/** What was found of every event that was checked, and why something was not; by keyOf. */
const found = signal<Map<string, unknown>>(new Map());
const troubles = signal<Map<string, string>>(new Map());
const MOST = 500;

/** The parameter of AdamW's that is looked at. */
export const parameter = computed(() => (current.value?.op === "adamw" ? route.value.o : null));

function keyOf(what: What): string {
  const { r } = route.value;
  return what === "model" ? `${r} model` : `${r} ${at.value} ${what} ${parameter.value ?? ""}`;
}

export const resultOf = <W extends What>(what: W): Found[W] | null =>
  (found.value.get(keyOf(what)) as Found[W]) ?? null;

export const troubleOf = (what: What): string => troubles.value.get(keyOf(what)) ?? "";

/** Whether something that was checked of this event is wrong; null: nothing was checked. */
export function verdict(): boolean | null {
  const rows: Judged[] = [
    ...(resultOf("maths")?.rows ?? []), ...(resultOf("kernel")?.rows ?? []),
  ];
  return rows.length ? rows.every((row) => row.ok) : null;
}

function put<T>(map: Map<string, T>, key: string, value: T | undefined): Map<string, T> {
  const next = new Map(map);
  next.delete(key);
  if (value !== undefined) next.set(key, value);
  for (const oldest of next.keys()) {
    if (next.size <= MOST) break;
    next.delete(oldest);
  }
  return next;
}

/** One check at a time: the former one is stopped.  True if it was done. */
async function run(what: What, query: Record<string, string | number> = {}): Promise<boolean> {
  running.value?.stop.abort();
  const key = keyOf(what);
  const stop = new AbortController();
  const begun = { what, done: 0, total: 0, since: performance.now(), stop };
  running.value = begun;
  troubles.value = put(troubles.value, key, undefined);
  found.value = put(found.value, key, undefined);
  const mine = () => running.value?.stop === stop;
  const path = what === "model" ? "bench/model" : `events/${at.value}/bench/${what}`;
  const progress = (done: number, total: number) => {
    if (mine()) running.value = { ...begun, done, total };
  };
  try {
    const tensor = parameter.value;
    const all = tensor && what !== "model" ? { ...query, tensor } : query;
    const { r } = route.value;
    const answer = await asked(() => api.check(r!, path, all, progress, stop.signal), stop);
    found.value = put(found.value, key, answer);
    return true;
  } catch (error) {
    if (!api.aborted(error)) troubles.value = put(troubles.value, key, (error as Error).message);
    return false;
  } finally {
    if (mine()) running.value = null;
  }
}

const RETRY_MS = 150;
const RETRIES = 20;

/** A check that was just stopped ends at its next cell; until then the server says it is busy. */
async function asked<T>(ask: () => Promise<T>, stop: AbortController): Promise<T> {
  for (let i = 0; ; i++) {
    try {
      return await ask();
    } catch (error) {
      const busy = error instanceof api.ApiError && error.status === 409;
      if (!busy || i >= RETRIES || stop.signal.aborted) throw error;
      await new Promise((wake) => setTimeout(wake, RETRY_MS));
    }
  }
}

/** Stop what is being checked; false if nothing is. */
export function stopCheck(): boolean {
  if (!running.value) return false;
  running.value.stop.abort();
  running.value = null;
  say("stopped");
  return true;
}

/** Open the bench and check the event: the maths, the kernel, and the worst cell at every step. */
export function openBench(): void {
  if (!current.value) return;
  navigate({ bench: true, screen: "", t: null, sl: null, z: null });
  void checkNow();
}

export function closeBench(): void {
  running.value?.stop.abort();
  running.value = null;
  navigate({ bench: false, o: null, ix: null });
}

export async function checkNow(): Promise<void> {
  const turn = ++turns;
  for (const what of ["maths", "kernel", "steps"] as const) {
    found.value = put(found.value, keyOf(what), undefined);
  }
  checking.value = true;
  await inOrder(turn);
  if (turn === turns) checking.value = false;
}
let turns = 0;

async function inOrder(turn: number): Promise<void> {
  const { r } = route.value;
  const k = at.value;
  const here = () => turn === turns && route.value.r === r && at.value === k && route.value.bench;
  const plan = await api.benchPlan(r!, k, parameter.value).catch(() => null);
  if (!plan || !here()) return;
  if (plan.maths.length && !(await run("maths"))) return;
  if (!here() || !(await run("kernel"))) return;
  const cell = here() ? cellOf(plan) : null;
  if (cell) await look(cell.operand, cell.index);
}

export const checkModel = (): void => void run("model");

/** The operand and cell that are looked at: what the address says, else the worst there is. */
export function cellOf(plan: BenchPlan): { operand: BenchOperand; index: number[] } | null {
  const { o, ix } = route.value;
  const rows = resultOf("maths")?.rows ?? [];
  const worst = rows.reduce((a, b) => (a && size(a.error) >= size(b.error) ? a : b), rows[0]);
  const of = plan.maths.find((m) => m.of === o) ?? plan.maths.find((m) => m.of === worst?.of)
    ?? plan.maths[0];
  if (!of) return null;
  const fits = o === of.of && ix?.length === of.x.shape.length
    && ix.every((n, i) => n < of.x.shape[i]);
  const own = rows.find((row) => row.of === of.of)?.worst?.index;
  return { operand: of.x, index: fits ? ix! : own ?? of.x.shape.map(() => 0) };
}

const size = (x: Real): number => (typeof x === "number" ? x : Infinity);

/** Draw the error of a cell against the step size. */
export async function look(operand: BenchOperand, index: number[]): Promise<void> {
  navigate({ o: operand.name, ix: index });
  await run("steps", { operand: operand.name, ...ravel(operand.shape, index) });
}
