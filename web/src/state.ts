/** What is shown, and the actions that change it. */

import { computed, effect, signal } from "@preact/signals";

import * as api from "./api";
import { navigate, route } from "./route";
import { groupsOf, segmentsOf } from "./groups";
import type { EventDetail, Operand, Recording, Run, Verdict, VersionDetail } from "./types";

export const runs = signal<Run[] | null>(null);
export const recording = signal<Recording | null>(null);
export const failure = signal<api.ApiError | null>(null);
/** The event whose numbers are on the screen: the one asked for, once it has come. */
export const shown = signal<EventDetail | null>(null);

export type Verification =
  | { state: "none" }
  | { state: "running"; done: number; total: number }
  | { state: "done"; verdict: Verdict }
  | { state: "refused"; why: string };
export const verification = signal<Verification>({ state: "none" });

export type Panes = "both" | "math" | "code";
export const panes = signal<Panes>("both");
export const playing = signal(false);
export const RATES = [1, 2, 4, 8, 16];
export const rate = signal(4);
export const overlay = signal<"none" | "help" | "palette" | "condition" | "edit">("none");
export const note = signal("");
/** The cell under the cursor of the inspector. */
export const selected = signal<{
  version: VersionDetail; index: number[]; value: string | null;
} | null>(null);
/** The derivation step under the pointer. */
export const lit = signal<number | null>(null);

export const events = computed(() => recording.value?.events ?? []);
export const at = computed(() => Math.min(route.value.e, Math.max(0, events.value.length - 1)));
export const current = computed(() => events.value[at.value] ?? null);
export const groups = computed(() => groupsOf(events.value));
const segments = computed(() => segmentsOf(groups.value));

/** Said in the transport bar and to screen readers; goes away by itself. */
export function say(text: string): void {
  note.value = text;
  clearTimeout(noteTimer);
  noteTimer = window.setTimeout(() => (note.value = ""), 6000);
}
let noteTimer = 0;

// ------------------------------------------------------------ loading

export async function loadRuns(): Promise<void> {
  try {
    runs.value = await api.runs();
    failure.value = null;
    const all = runs.value.flatMap((run) => run.recordings);
    if (route.value.r === null && !route.value.screen) {
      if (all.length === 1) navigate({ r: all[0].id, e: 0 });
      else if (!all.length && runs.value.length) navigate({ screen: "live" });
    }
  } catch (error) {
    fail(error);
  }
}

export function fail(error: unknown): void {
  if (api.aborted(error)) return;
  failure.value = error instanceof api.ApiError ? error : new api.ApiError(0, String(error));
}

let opened: string | null = null;

async function open(r: string | null): Promise<void> {
  if (r === opened) return;
  opened = r;
  recording.value = shown.value = null;
  verification.value = { state: "none" };
  playing.value = false;
  walked = -1;
  if (r === null) return;
  try {
    const found = await api.recording(r);
    if (opened === r) recording.value = found;
    failure.value = null;
  } catch (error) {
    if (opened === r) fail(error);
  }
}

/** Pictures fetched with an event; AdamW has hundreds, which come as they are looked at. */
const PICTURES = 12;
let stale = new AbortController();
/** Events on either side that are fetched before they are asked for, and how far they are kept. */
const NEAR = [1, 2, -1];
const KEPT = 3;
const ahead = new Map<number, AbortController>();

/** Fetch the event and its pictures, show it, then fetch its neighbours; what is stale stops. */
async function load(r: string, k: number): Promise<void> {
  stale.abort();
  const { signal } = (stale = new AbortController());
  for (const [n, fetching] of ahead) if (Math.abs(n - k) > KEPT) fetching.abort();
  try {
    const found = await fetchEvent(r, k, signal);
    if (signal.aborted) return;
    shown.value = found;
    measure();
    for (const n of NEAR) await fetchAhead(r, k + n, signal);
  } catch (error) {
    fail(error);
  }
}

/** Its own request, so that a step towards it does not end what it needs. */
async function fetchAhead(r: string, k: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted || !events.value[k] || ahead.has(k)) return;
  const fetching = new AbortController();
  ahead.set(k, fetching);
  await fetchEvent(r, k, fetching.signal).finally(() => ahead.delete(k));
}

/** From the key to the picture, in the browser's performance log. */
function measure(): void {
  requestAnimationFrame(() => setTimeout(() => {
    if (!performance.getEntriesByName("step", "mark").length) return; // not a step, or measured
    performance.measure("step to paint", "step");
    performance.clearMarks("step");
  }));
}

async function fetchEvent(r: string, k: number, signal: AbortSignal): Promise<EventDetail> {
  const found = api.heldEvent(r, k) ?? (await api.event(r, k, signal));
  const wanted = [...found.outs, ...found.ins].filter((o) => o.version.pictured);
  await Promise.all([
    ...wanted.slice(0, PICTURES).map(
      (o) => api.heldPicture(r, o.version.id) ?? api.picture(r, o.version.id, signal)),
    api.maths(r, found.op, signal).catch(() => null),
    found.kernel && api.source(r, found.kernel, signal).catch(() => null),
  ]);
  return found;
}

export function start(): void {
  effect(() => void open(route.value.r));
  effect(() => {
    if (recording.value && current.value && route.value.r) void load(route.value.r, at.value);
  });
  effect(() => {
    if (!playing.value) return;
    const timer = setInterval(tick, 1000 / rate.value);
    return () => clearInterval(timer);
  });
}

function tick(): void {
  if (shown.value?.k !== at.value) return; // the last one is not on the screen yet
  if (at.value + 1 >= events.value.length) playing.value = false;
  else go(at.value + 1);
}

// ------------------------------------------------------------ moving

/** Show event k.  With a tensor open, the view follows to the event's first output. */
export function go(k: number): void {
  const to = Math.max(0, Math.min(events.value.length - 1, k));
  if (to === at.value) return;
  performance.mark("step");
  const follow = route.value.t === null ? null : events.value[to].first;
  const view = route.value.screen ? {} : tensorView(follow); // a screen keeps its cursor
  navigate({ e: to, o: null, ...view });
}

const tensorView = (t: number | null) => ({ t, ix: null, sl: null, z: null });

export function inspect(v: number, ix: number[] | null = null): void {
  navigate({ ...tensorView(v), ix, screen: "" });
}

export const closeTensor = (): void => navigate({ t: null, ix: null, sl: null, z: null });

export const openRecording = (r: string | null): void =>
  navigate({ r, e: 0, l: null, bench: false, o: null, ...tensorView(null), screen: "", vs: null });

/** Another screen over the event, or the event again. */
export const toggleScreen = (name: string): void => {
  if (route.value.r === null) return;
  const screen = route.value.screen === name ? "" : name;
  navigate({ screen, bench: false, o: null, t: null, l: null, ix: null, sl: null, z: null });
};

export function layer(direction: 1 | -1): void {
  const segment = segments.value.findIndex((s) => at.value >= s.first && at.value <= s.last);
  const next = segments.value[segment + direction];
  if (next) go(next.first);
}

export function twin(): void {
  const other = current.value?.twin;
  if (other === null || other === undefined) say(`${current.value?.op} has no twin`);
  else go(other);
}

/** Where the last walk from one event that is not finite to another has led. */
let walked = -1;

/** First to the origin, wherever we are: the first event with something not finite, which is in the
 * forward pass when the backward only inherits it.  From there on to the next or the one before. */
export function bad(direction: 1 | -1): void {
  const origin = events.value.findIndex((e) => e.bad);
  if (origin < 0) return say("every number of this step is finite");
  let k = origin;
  if (at.value === walked || at.value === origin) {
    k = at.value + direction;
    while (events.value[k] && !events.value[k].bad) k += direction;
    if (!events.value[k]) {
      return say(direction > 0 ? "no NaN or ∞ after this event" : "the origin: no NaN or ∞ before");
    }
  }
  walked = k;
  go(k);
  if (k === origin) void sayOrigin(k).catch(fail);
}

/** Whether the event made what is not finite out of finite numbers. */
async function sayOrigin(k: number): Promise<void> {
  const { ins } = await api.event(route.value.r!, k);
  const given = ins.filter(({ version: { statistics: s } }) => s.nans + s.infs > 0);
  const names = [...new Set(given.map((o) => o.version.tensor))].join(", ");
  say(names ? `the origin: ${names} was not finite when it came here`
    : "the origin: all that this event read is finite");
}

/** The version of a tensor before or after: of the open one, or of the event's first output. */
export async function versionStep(direction: 1 | -1): Promise<void> {
  const { r, t } = route.value;
  const from = t ?? current.value?.first;
  if (r === null || from === undefined) return;
  try {
    const found = await api.version(r, from);
    const next = direction > 0 ? found.next : found.previous;
    if (next === null) {
      say(`${found.tensor} has no ${direction > 0 ? "later" : "earlier"} version`);
    } else if (t !== null) {
      navigate({ t: next });
    } else {
      const made = (await api.version(r, next)).made_by;
      if (made === null) inspect(next);
      else go(made);
    }
  } catch (error) {
    fail(error);
  }
}

export const firstOutput = (detail: EventDetail): Operand | undefined => detail.outs[0];

// ------------------------------------------------------------ verifying

export async function verify(): Promise<void> {
  const { r } = route.value;
  if (r === null || verification.value.state === "running") return;
  verification.value = { state: "running", done: 0, total: 0 };
  const now = () => route.value.r === r;
  try {
    const verdict = await api.verify(r, (done, total) => {
      if (now()) verification.value = { state: "running", done, total };
    });
    if (now()) verification.value = { state: "done", verdict };
  } catch (error) {
    if (now()) verification.value = { state: "refused", why: String((error as Error).message) };
  }
}
