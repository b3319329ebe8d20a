/** The address of everything: #/r/RECORDING/e/EVENT/t/VERSION?ix=0,3,7&sl=0&p=mean&z=…, and of the
 * gradient bench: #/r/RECORDING/e/EVENT/bench?o=x&ix=0,3,7 */

import { signal } from "@preact/signals";

export interface Route {
  r: string | null;
  e: number;
  t: number | null;
  /** Whether the event lies on the gradient bench, and its operand there. */
  bench: boolean;
  o: string | null;
  /** The layer that the attention screen shows. */
  l: number | null;
  /** The cell under the cursor, one number an axis. */
  ix: number[] | null;
  /** Fixed leading axes; null: what suits the tensor. */
  sl: number[] | null;
  plane: string;
  /** Zoom and place of the heatmap: x, y, sx, sy. */
  z: number[] | null;
  /** The screen, where it is not a recording's events: "live", "compare";
   * "attention" and "flow" are of the event. */
  screen: string;
  /** The recording that the open one is held against. */
  vs: string | null;
  /** The runs whose curves are shown; null: all. */
  on: string[] | null;
  /** Switches of the screen: "time", "smooth" … */
  flags: string[];
}

const EMPTY: Route = {
  r: null, e: 0, t: null, l: null, bench: false, o: null, ix: null, sl: null, plane: "mean", z: null,
  screen: "", vs: null,
  on: null, flags: [],
};

export const route = signal<Route>(EMPTY);

const numbers = (text: string | null): number[] | null => {
  const found = text ? text.split(",").map(Number) : [];
  return found.length && found.every(Number.isFinite) ? found : null;
};

export function parse(hash: string): Route {
  const [path, query] = hash.replace(/^#/, "").split("?", 2);
  const words = path.split("/").filter(Boolean);
  const parts = words.filter((word) => word !== "bench");
  const found: Record<string, string> = {};
  for (let i = 0; i + 1 < parts.length; i += 2) found[parts[i]] = parts[i + 1];
  const asked = new URLSearchParams(query ?? "");
  const whole = (text?: string) => (/^\d+$/.test(text ?? "") ? Number(text) : null);
  return {
    r: found.r ? decodeURIComponent(found.r) : null,
    e: whole(found.e) ?? 0,
    t: whole(found.t),
    bench: words.length > parts.length,
    o: asked.get("o"),
    l: whole(asked.get("l") ?? undefined),
    ix: numbers(asked.get("ix")),
    sl: asked.get("sl") === "" ? [] : numbers(asked.get("sl")),
    plane: asked.get("p") ?? "mean",
    z: numbers(asked.get("z")),
    screen: found.s ?? "",
    vs: asked.get("vs"),
    on: asked.get("on")?.split(",").filter(Boolean) ?? null,
    flags: asked.get("f")?.split(",").filter(Boolean) ?? [],
  };
}

export function format(x: Route): string {
  const asked: string[] = [];
  if (x.vs) asked.push(`vs=${encodeURIComponent(x.vs)}`);
  if (x.on) asked.push(`on=${x.on.map(encodeURIComponent).join(",")}`);
  if (x.flags.length) asked.push(`f=${x.flags.join(",")}`);
  let text = x.screen ? `#/s/${x.screen}` : "#";
  if (x.r !== null) text += `/r/${encodeURIComponent(x.r)}/e/${x.e}`;
  if (x.r !== null && x.bench) text += "/bench";
  if (x.bench && x.o !== null) asked.push(`o=${encodeURIComponent(x.o)}`);
  if (x.r !== null && x.t !== null) text += `/t/${x.t}`;
  if (x.r !== null && x.l !== null) asked.push(`l=${x.l}`);
  if (x.r !== null && (x.t !== null || x.bench || x.screen)) {
    if (x.ix) asked.push(`ix=${x.ix.join(",")}`);
    if (x.sl) asked.push(`sl=${x.sl.join(",")}`);
    if (x.plane !== "mean") asked.push(`p=${x.plane}`);
    if (x.z) asked.push(`z=${x.z.map((n) => +n.toPrecision(6)).join(",")}`);
  }
  return (text === "#" ? "#/" : text) + (asked.length ? `?${asked.join("&")}` : "");
}

/** Browsers refuse many address changes a second; the address follows when the hand rests. */
const SETTLE_MS = 150;
let timer = 0;

export function navigate(change: Partial<Route>): void {
  route.value = { ...route.value, ...change };
  clearTimeout(timer);
  timer = window.setTimeout(write, SETTLE_MS);
}

function write(): void {
  const hash = format(route.value);
  if (hash !== location.hash) history.replaceState(null, "", location.pathname + hash);
}

/** For a link to be copied at once. */
export function settle(): string {
  clearTimeout(timer);
  write();
  return location.href;
}

export function listen(): void {
  route.value = parse(location.hash);
  write();
  addEventListener("hashchange", (e) => {
    clearTimeout(timer); // it would write the address that was left
    route.value = parse(new URL(e.newURL).hash); // which a late write may have replaced
  });
  addEventListener("pagehide", write);
}
