/** The curves of runs while they train: asks for what is new, and keeps it. */

import { effect, signal } from "@preact/signals";

import * as api from "./api";
import { navigate, route } from "./route";
import { runs } from "./state";
import type { RecordingInfo } from "./types";

type Numbers = (number | string)[];

interface News {
  id: string;
  again: boolean;
  cursor: string;
  step?: Record<string, Numbers>;
  val?: Record<string, Numbers>;
  recordings?: RecordingInfo[];
  steps?: number | null;
  age_s: number | null;
  damaged?: string[];
}

export interface Curve {
  id: string;
  cursor: string;
  step: number[];
  loss: number[];
  grad_norm: number[];
  lr: number[];
  tokens_per_s: number[];
  ms: number[];
  /** Seconds of training until each step. */
  time: number[];
  valStep: number[];
  valLoss: number[];
  recordings: RecordingInfo[];
  /** Where the run is to end. */
  steps: number | null;
  /** When its log has last grown, by this machine's clock. */
  grown: number;
  damaged: string[];
}

export const curves = new Map<string, Curve>();
/** Rises when a curve has grown. */
export const grown = signal(0);
/** The time, every second. */
export const clock = signal(Date.now());
export const lost = signal("");

const WAIT_SECONDS = 15;
const AGAIN_MS = 1500;

export const followed = (): string[] => route.value.on ?? (runs.value ?? []).map((x) => x.id);

export const openLive = (): void => navigate({ screen: "live", t: null, flags: [] });

function fresh(id: string): Curve {
  return {
    id, cursor: "", step: [], loss: [], grad_norm: [], lr: [], tokens_per_s: [], ms: [], time: [],
    valStep: [], valLoss: [], recordings: [], steps: null, grown: 0, damaged: [],
  };
}

const WORDS: Record<string, number> = { inf: Infinity, "-inf": -Infinity };
const number = (x: number | string): number =>
  (typeof x === "number" ? x : WORDS[x] ?? Number.NaN);

function put(to: number[], from: Numbers): void {
  for (const x of from) to.push(number(x)); // not spread: there may be a hundred thousand
}

const COLUMNS = ["step", "loss", "grad_norm", "lr", "tokens_per_s", "ms"] as const;

function take(x: News): void {
  const had = curves.get(x.id);
  const c = had && !x.again ? had : { ...fresh(x.id), recordings: had?.recordings ?? [] };
  c.cursor = x.cursor;
  if (x.step) {
    const from = c.step.length;
    for (const name of COLUMNS) put(c[name], x.step[name]);
    for (let i = from; i < c.step.length; i++) {
      c.time.push((c.time[i - 1] ?? 0) + (Number.isFinite(c.ms[i]) ? c.ms[i] : 0) / 1000);
    }
  }
  if (x.val) {
    put(c.valStep, x.val.step);
    put(c.valLoss, x.val.loss);
  }
  if (x.damaged?.length) c.damaged = [...c.damaged, ...x.damaged].slice(0, 5);
  if (x.recordings) c.recordings = x.recordings;
  if (x.steps !== undefined) c.steps = x.steps;
  if (x.age_s !== null) c.grown = Date.now() - 1000 * x.age_s;
  curves.set(x.id, c);
}

async function follow(ids: string[], stop: AbortSignal): Promise<void> {
  for (let first = true; !stop.aborted; first = false) {
    const asked = ids.map((id) => `${id}:${curves.get(id)?.cursor ?? ""}`).join(",");
    try {
      const answer = await api.request(
        `live?on=${asked}&wait=${first ? 0 : WAIT_SECONDS}`, { signal: stop });
      const found = (await answer.json()).runs as News[];
      if (stop.aborted) return;
      lost.value = "";
      found.forEach(take);
      if (found.length || first) grown.value++;
    } catch (error) {
      if (api.aborted(error)) return;
      lost.value = (error as Error).message;
      await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }
}

export function startFollowing(): void {
  let key = "";
  let stop = new AbortController();
  effect(() => {
    const ids = route.value.screen === "live" ? followed() : [];
    if (ids.join() === key) return;
    key = ids.join();
    stop.abort();
    stop = new AbortController();
    if (ids.length) void follow(ids, stop.signal);
  });
  effect(() => {
    if (route.value.screen !== "live") return;
    const timer = setInterval(() => (clock.value = Date.now()), 1000);
    return () => clearInterval(timer);
  });
}

const QUIET_MS = 5000;

/** What the run is doing, as far as its log tells. */
export function stateOf(c: Curve): { mood: string; text: string } {
  const n = c.step.length;
  const last = c.step[n - 1] ?? 0;
  if (c.steps !== null && last >= c.steps) return { mood: "good", text: "finished" };
  const quiet = clock.value - c.grown;
  if (!c.grown) return { mood: "", text: "nothing logged yet" };
  if (quiet < Math.max(QUIET_MS, 5 * (c.ms[n - 1] || 0))) return { mood: "busy", text: "training" };
  return { mood: "warn", text: `silent for ${span(quiet / 1000)}` };
}

export function span(seconds: number): string {
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 360_000 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} d`;
}

/** Where a step is among those of a curve: the last that is not after it; −1: none. */
export function indexOf(steps: number[], x: number): number {
  let low = -1;
  let high = steps.length;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= x) low = middle;
    else high = middle;
  }
  return low;
}

const KEEP = 0.9;

/** The exponential mean of what came before, corrected for its beginning. */
export function smoothed(values: number[]): number[] {
  let sum = 0;
  let weight = 0;
  return values.map((x) => {
    if (Number.isFinite(x)) {
      sum = KEEP * sum + (1 - KEEP) * x;
      weight = KEEP * weight + 1 - KEEP;
    }
    return weight ? sum / weight : x;
  });
}
