/** Every request of the page: same origin, with the token, cached where the answer cannot change. */

import { forTab } from "./storage";
import type {
  BenchPlan, EventDetail, Flow, Histogram, Maps, Maths, Planes, Recording, Run, Source, Tile, Update,
  Verdict, VersionDetail,
} from "./types";

const TOKEN_KEY = "backglass-token";

export class ApiError extends Error {
  constructor(readonly status: number, message: string) {
    super(message);
  }
}

/** Move the token from the address to this tab's storage, so that it is not copied with a link. */
export function takeToken(): void {
  const match = /^#token=([\w-]+)/.exec(location.hash);
  if (!match) return;
  setToken(match[1]);
  history.replaceState(null, "", location.pathname + "#/");
}

export function setToken(token: string): void {
  forTab.setItem(TOKEN_KEY, token);
}

export async function request(path: string, init: RequestInit = {}): Promise<Response> {
  const headers = { ...init.headers, "X-Backglass-Token": forTab.getItem(TOKEN_KEY) ?? "" };
  let answer: Response;
  try {
    answer = await fetch(`/api/${path}`, { ...init, headers });
  } catch (error) {
    if (aborted(error)) throw error;
    throw new ApiError(0, "The studio's server does not answer. Start `backglass studio` again.");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new ApiError(answer.status, String(body.error ?? answer.statusText));
}

export function aborted(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

const cache = new Map<string, { value: unknown; bytes: number }>();
const CACHE_BYTES = 96 << 20;
let held = 0;

function keep(key: string, value: unknown, bytes: number): void {
  cache.set(key, { value, bytes });
  held += bytes;
  for (const [oldest, entry] of cache) {
    if (held <= CACHE_BYTES) break;
    cache.delete(oldest);
    held -= entry.bytes;
  }
}

/** What the cache holds, as the most recently used; undefined if it must be fetched. */
function peek<T>(key: string): T | undefined {
  const entry = cache.get(key);
  if (!entry) return undefined;
  cache.delete(key);
  cache.set(key, entry);
  return entry.value as T;
}

export async function cached<T>(
  path: string, decode: (answer: Response) => Promise<[T, number]>, signal?: AbortSignal,
): Promise<T> {
  const had = peek<T>(path);
  if (had !== undefined) return had;
  const coming = underway.get(path);
  if (coming) {
    try {
      return (await coming) as T;
    } catch (error) {
      if (!aborted(error) || signal?.aborted) throw error; // else whoever asked first gave up
    }
  }
  const asked = request(path, { signal }).then(decode);
  const answer = asked.then(([value, bytes]) => {
    if (!cache.has(path)) keep(path, value, bytes);
    return value;
  }).finally(() => underway.get(path) === answer && underway.delete(path));
  underway.set(path, answer);
  return answer;
}

/** What has been asked for and has not come. */
const underway = new Map<string, Promise<unknown>>();

export async function asJson<T>(answer: Response): Promise<[T, number]> {
  const text = await answer.text();
  return [JSON.parse(text) as T, 2 * text.length];
}

async function asPicture(answer: Response): Promise<[Planes, number]> {
  const octets = await answer.arrayBuffer();
  const [down, across] = new Uint32Array(octets, 0, 2);
  return [planesOf(octets, 8, down, across), octets.byteLength];
}

async function asTile(answer: Response): Promise<[Tile, number]> {
  const octets = await answer.arrayBuffer();
  const [planes, height, width] = new Uint32Array(octets, 0, 3);
  if (planes === 0) {
    return [{ height, width, values: unshaded(octets), planes: null }, 4 * octets.byteLength];
  }
  const tile = planes === 1
    ? { height, width, values: new Float32Array(octets, 12, height * width), planes: null }
    : { height, width, values: null, planes: planesOf(octets, 12, height, width) };
  return [tile, octets.byteLength];
}

/** Numbers to be painted, from a byte each after the largest: the square root of what part of it
 * they are; −128: not finite. */
function unshaded(octets: ArrayBuffer, start = 12): Float32Array {
  const [largest] = new Float32Array(octets, start, 1);
  return Float32Array.from(new Int8Array(octets, start + 4), (shade) =>
    (shade === -128 ? NaN : Math.sign(shade) * (shade / 127) ** 2 * largest));
}

function planesOf(octets: ArrayBuffer, start: number, down: number, across: number): Planes {
  const n = down * across;
  const [min, max, mean, bad] =
    [0, 1, 2, 3].map((i) => new Float32Array(octets, start + 4 * n * i, n));
  return { down, across, min, max, mean, bad };
}

export const of = (r: string) => `recordings/${encodeURIComponent(r)}`;

/** Names of source files keep their slashes. */
const named = (name: string) => name.split("/").map(encodeURIComponent).join("/");

export const runs = async (): Promise<Run[]> => (await request("runs")).json();

export const recording = async (r: string): Promise<Recording> => (await request(of(r))).json();

export const event = (r: string, k: number, signal?: AbortSignal) =>
  cached(`${of(r)}/events/${k}`, asJson<EventDetail>, signal);

export const heldEvent = (r: string, k: number) => peek<EventDetail>(`${of(r)}/events/${k}`);

export const version = (r: string, v: number, signal?: AbortSignal) =>
  cached(`${of(r)}/versions/${v}`, asJson<VersionDetail>, signal);

export const picture = (r: string, v: number, signal?: AbortSignal) =>
  cached(`${of(r)}/versions/${v}/picture`, asPicture, signal);

export const heldPicture = (r: string, v: number) =>
  peek<Planes>(`${of(r)}/versions/${v}/picture`);

export const histogram = (r: string, v: number, signal?: AbortSignal) =>
  cached(`${of(r)}/versions/${v}/histogram`, asJson<Histogram>, signal);

/** plane: what is sent of a tile, as shades, a byte each; null: all of it, as float32. */
const tilePath = (
  r: string, v: number, level: number, i: number, j: number, plane: string | null,
) => `${of(r)}/versions/${v}/tile?level=${level}&i=${i}&j=${j}${plane ? `&plane=${plane}` : ""}`;

export const tile = (
  r: string, v: number, level: number, i: number, j: number, plane: string | null,
  signal?: AbortSignal,
) => cached(tilePath(r, v, level, i, j, plane), asTile, signal);

export const heldTile = (
  r: string, v: number, level: number, i: number, j: number, plane: string | null,
) => peek<Tile>(tilePath(r, v, level, i, j, plane));

/** Exact numbers, as text that reads back as the same bits. */
export const cells = async (
  r: string, v: number, row: number, column: number, height: number, width: number,
  signal?: AbortSignal,
): Promise<string[][]> => {
  const where = `row=${row}&column=${column}&height=${height}&width=${width}`;
  const path = `${of(r)}/versions/${v}/cells?${where}`;
  return (await cached(path, asJson<{ values: string[][] }>, signal)).values;
};

export const flow = (r: string, run: number, signal?: AbortSignal) =>
  cached(`${of(r)}/flow?run=${run}`, asJson<Flow>, signal);

export const maps = (
  r: string, name: "att" | "datt", run: number, batch: number, signal?: AbortSignal,
) => cached(`${of(r)}/attention/${name}?run=${run}&batch=${batch}`, asMaps, signal);

async function asMaps(answer: Response): Promise<[Maps, number]> {
  const octets = await answer.arrayBuffer();
  const [layers, heads, height, width] = new Uint32Array(octets, 0, 4);
  const [largest] = new Float32Array(octets, 16, 1);
  return [{ layers, heads, height, width, largest, values: unshaded(octets, 16) },
    4 * octets.byteLength];
}

export const source = (r: string, name: string, signal?: AbortSignal) =>
  cached(`${of(r)}/source/${named(name)}`, asJson<Source>, signal);

export const maths = (r: string, op: string, signal?: AbortSignal) =>
  cached(`${of(r)}/maths/${encodeURIComponent(op)}`, asJson<Maths>, signal);

/** An answer that comes as one JSON object a line. */
export async function eachLine(
  answer: Response, take: (row: Record<string, unknown>) => void,
): Promise<void> {
  const reader = answer.body!.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop() ?? "";
    lines.filter(Boolean).forEach((line) => take(JSON.parse(line)));
  }
}

/** Work that the server does once: tells how far it is, returns what it found. */
export async function work<T>(
  path: string, progress: (done: number, total: number) => void, body?: object,
  signal?: AbortSignal,
): Promise<T> {
  const answer = await request(path, { method: "POST", body: body && JSON.stringify(body), signal });
  let last: Record<string, unknown> = {};
  await eachLine(answer, (row) => {
    last = row;
    if ("total" in row) progress(Number(row.done), Number(row.total));
  });
  if ("error" in last) throw new ApiError(500, String(last.error));
  if (!Object.keys(last).length || "total" in last) {
    throw new ApiError(0, "The server broke off before the end.");
  }
  return last as T;
}

/** Do the step again and compare every hash. */
export const verify = (r: string, progress: (done: number, total: number) => void) =>
  work<Verdict>(`${of(r)}/verify`, progress);

// ------------------------------------------------------------ the gradient bench

type Query = Record<string, string | number>;

const asked = (query: Query) =>
  new URLSearchParams(Object.entries(query).map(([k, x]) => [k, String(x)])).toString();

/** What can be checked of an event; of AdamW, of one parameter. */
export const benchPlan = (r: string, k: number, tensor: string | null, signal?: AbortSignal) =>
  cached(`${of(r)}/events/${k}/bench?${asked(tensor ? { tensor } : {})}`, asJson<BenchPlan>, signal);

export const update = async (
  r: string, tensor: string, row: number, column: number, signal?: AbortSignal,
): Promise<Update> => (await request(
  `${of(r)}/bench/update?${asked({ tensor, row, column })}`, { signal })).json();

export const check = <T>(
  r: string, what: string, query: Query, progress: (done: number, total: number) => void,
  signal: AbortSignal,
) => work<T>(`${of(r)}/${what}?${asked(query)}`, progress, undefined, signal);
