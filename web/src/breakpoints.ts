/** Breakpoints: on an event, or on a condition such as `absmax > 1e3`, `any nan`, `op = d_gelu`.
 *
 *   condition  = term { ("and" | "or") term }        read from left to right
 *   term       = statistic ("<" | "<=" | ">" | ">=" | "=") number      of any output
 *              | "any" ("nan" | "inf" | "bad")
 *              | [ "op" "=" ] name                   the op's name, with * for anything
 *              | "layer" "=" number
 *
 * Parsed by hand: nothing that a user types is ever executed.
 */

import { signal } from "@preact/signals";

import * as api from "./api";
import { at, events, go, say } from "./state";
import { route } from "./route";
import type { EventDetail, Statistics } from "./types";

type Test = (e: EventDetail) => boolean;

export interface Condition {
  text: string;
  test: Test;
}

export const stops = signal<ReadonlySet<number>>(new Set());
export const conditions = signal<Condition[]>([]);
export const searching = signal<number | null>(null);

const STATISTICS = ["min", "max", "mean", "std", "norm", "zeros", "nans", "infs"];
const COMPARE: Record<string, (a: number, b: number) => boolean> = {
  "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
  "=": (a, b) => a === b,
};
const TOKEN = /\s*(<=|>=|==|[<>=]|[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?![\w*])|[\w*]+)/iy;

/** Throws an Error that says what was found and what is possible. */
export function parse(text: string): Condition {
  const words = tokens(text);
  let found = term(words);
  while (words.length) {
    const joint = words.shift()!.toLowerCase();
    if (joint !== "and" && joint !== "or") throw new Error(`“${joint}”: expected and, or`);
    const left = found;
    const right = term(words);
    found = joint === "and" ? (e) => left(e) && right(e) : (e) => left(e) || right(e);
  }
  return { text: text.trim(), test: found };
}

function tokens(text: string): string[] {
  const found: string[] = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.trimEnd().length) {
    const start = TOKEN.lastIndex;
    const match = TOKEN.exec(text);
    if (!match) throw new Error(`“${text.slice(start).trim()}” is not understood`);
    found.push(match[1] === "==" ? "=" : match[1]);
  }
  return found;
}

function term(words: string[]): Test {
  const word = words.shift();
  if (!word) throw new Error("a condition is like absmax > 1e3, any nan, or the name of an op");
  const lower = word.toLowerCase();
  if (lower === "any") return anyOf(words.shift()?.toLowerCase());
  if (lower === "absmax" || STATISTICS.includes(lower)) return comparison(lower, words);
  if (lower === "layer") {
    if (words.shift() !== "=") throw new Error("layer: expected = and a number");
    const n = number(words.shift());
    return (e) => e.layer === n;
  }
  let name = word;
  if (lower === "op" && words[0] === "=") {
    words.shift();
    name = words.shift() ?? "";
  }
  if (!/^[\w*]+$/.test(name)) throw new Error(`“${name}” is no name of an op`);
  const pieces = name.split("*");
  return (e) => matches(e.op, pieces);
}

/** Whether the name is the pieces in order, anything between them. */
function matches(name: string, pieces: string[]): boolean {
  if (pieces.length === 1) return name === pieces[0];
  const [head, ...rest] = pieces;
  const tail = rest.pop()!;
  if (!name.startsWith(head) || name.length < head.length + tail.length) return false;
  let from = head.length;
  for (const piece of rest) {
    const found = name.indexOf(piece, from);
    if (found < 0) return false;
    from = found + piece.length;
  }
  return name.endsWith(tail) && name.length - tail.length >= from;
}

function anyOf(what: string | undefined): Test {
  if (what === "nan") return (e) => e.outs.some((o) => o.version.statistics.nans > 0);
  if (what === "inf") return (e) => e.outs.some((o) => o.version.statistics.infs > 0);
  if (what === "bad") return (e) => e.bad;
  throw new Error("any: expected nan, inf or bad");
}

function comparison(name: string, words: string[]): Test {
  const compare = COMPARE[words.shift() ?? ""];
  if (!compare) throw new Error(`${name}: expected <, <=, >, >= or =`);
  const bound = number(words.shift());
  return (e) => e.outs.some((o) => compare(value(o.version.statistics, name), bound));
}

/** The statistics are of finite numbers; an infinite one is larger than all of them. */
const value = (s: Statistics, name: string): number => {
  if (name !== "absmax") return s[name as keyof Statistics];
  return s.infs > 0 ? Infinity : Math.max(Math.abs(s.min), Math.abs(s.max));
};

function number(text: string | undefined): number {
  const found = Number(text);
  if (!text || !Number.isFinite(found)) throw new Error(`“${text ?? ""}” is not a number`);
  return found;
}

// ------------------------------------------------------------ using them

export function toggleStop(k: number): void {
  const next = new Set(stops.value);
  if (!next.delete(k)) next.add(k);
  stops.value = next;
  say(next.has(k) ? `breakpoint at event ${k}` : `no breakpoint at event ${k} any more`);
}

export const addCondition = (text: string): void => {
  const found = parse(text);
  if (!conditions.value.some((c) => c.text === found.text)) {
    conditions.value = [...conditions.value, found];
  }
};

export const removeCondition = (text: string): void => {
  conditions.value = conditions.value.filter((c) => c.text !== text);
};

const AHEAD = 8; // requests at a time while searching
let search = 0;

export const stopSearching = (): void => {
  search++;
  searching.value = null;
};

/** Go on to the next breakpoint, forwards or backwards in time; to the end if there is none. */
export async function proceed(direction: 1 | -1): Promise<void> {
  const mine = ++search;
  const { r } = route.value;
  const last = direction > 0 ? events.value.length - 1 : 0;
  for (let k = at.value + direction; r && direction * (last - k) >= 0; k += direction) {
    if (stops.value.has(k)) return arrive(k, `breakpoint at event ${k}`);
    if (!conditions.value.length) continue;
    searching.value = k;
    for (let n = 1; n < AHEAD; n++) {
      const ahead = k + n * direction;
      if (events.value[ahead]) api.event(r, ahead).catch(() => null);
    }
    const detail = await api.event(r, k);
    if (mine !== search) return;
    const hit = conditions.value.find((c) => c.test(detail));
    if (hit) return arrive(k, `stopped: ${hit.text}`);
  }
  const any = stops.value.size + conditions.value.length > 0;
  arrive(last, any ? "no breakpoint on the way" : "no breakpoints are set; b sets one");
}

function arrive(k: number, why: string): void {
  searching.value = null;
  go(k);
  say(why);
}
