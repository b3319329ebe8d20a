/** The bottom: where in the step we are, and how to move.  Forward runs to the right, backward to
 * the left below it, each line under the line it undoes; the optimizer last. */

import { useEffect, useRef, useState } from "preact/hooks";

import {
  conditions, proceed, removeCondition, searching, stops, toggleStop,
} from "./breakpoints";
import { PHASES } from "./card";
import { theme } from "./colour";
import { enlarged } from "./format";
import { groupsOf, placesOf, type Place } from "./groups";
import {
  at, events, fail, go, groups, note, overlay, playing, rate, RATES,
} from "./state";
import type { Event } from "./types";

export function Transport() {
  const [hover, setHover] = useState<number | null>(null);
  return (
    <footer class="transport" aria-label="Transport">
      <div class="bar">
        <Buttons />
        <Position hover={hover} />
        <span class="space" />
        <Conditions />
      </div>
      <Lanes onHover={setHover} />
    </footer>
  );
}

function Buttons() {
  const last = events.value.length - 1;
  const k = at.value;
  const proceedTo = (d: 1 | -1) => () => void proceed(d).catch(fail);
  return (
    <div class="buttons" role="group" aria-label="Step">
      <Act name="First event (Home)" sign="⇤" off={k === 0} act={() => go(0)} />
      <Act name="Back to the breakpoint before (Shift+C)" sign="«" act={proceedTo(-1)} />
      <Act name="Previous event (←)" sign="‹" off={k === 0} act={() => go(k - 1)} />
      <button class="play" aria-pressed={playing.value} aria-label="Play or pause (Space)"
        title="Play or pause (Space)" onClick={() => (playing.value = !playing.value)}>
        <svg viewBox="0 0 16 16" aria-hidden="true">
          <path d={playing.value ? "M4 3h3v10H4zM9 3h3v10H9z" : "M4 2.5v11l9-5.5z"} />
        </svg>
      </button>
      <Act name="Next event (→)" sign="›" off={k === last} act={() => go(k + 1)} />
      <Act name="On to the next breakpoint (c)" sign="»" act={proceedTo(1)} />
      <Act name="Last event (End)" sign="⇥" off={k === last} act={() => go(last)} />
      <button class="rate num" title="Events a second while playing" onClick={nextRate}>
        {rate.value}/s
      </button>
    </div>
  );
}

const nextRate = () => {
  rate.value = RATES[(RATES.indexOf(rate.value) + 1) % RATES.length];
};

function Act({ name, sign, off, act }: {
  name: string; sign: string; off?: boolean; act: () => void;
}) {
  return (
    <button aria-label={name} title={name} aria-disabled={off} onClick={() => off || act()}>
      {sign}
    </button>
  );
}

/** What the pointer is over, else what was just said, else the current event. */
function Position({ hover }: { hover: number | null }) {
  const k = hover ?? at.value;
  const e = events.value[k];
  const far = searching.value;
  return (
    <div class="position">
      <span class="num" data-testid="position">
        <b>{k}</b> / {Math.max(0, events.value.length - 1)}
      </span>
      {e && <span class={`phase ${e.phase}`}>{PHASES[e.phase]}</span>}
      <span class="mono words" aria-live="polite">
        {far !== null ? `searching … event ${far} (Esc stops)` : (hover === null && note.value) || e?.text}
      </span>
    </div>
  );
}

function Conditions() {
  return (
    <div class="conditions">
      {conditions.value.map((c) => (
        <button key={c.text} class="chip" title="Remove this breakpoint"
          onClick={() => removeCondition(c.text)}>
          <span class="mono">{c.text}</span> ✕
        </button>
      ))}
      <button class="plain" onClick={() => (overlay.value = "condition")}
        title="Stop where a condition holds (Shift+B)">
        break when … <kbd>B</kbd>
      </button>
    </div>
  );
}

// ------------------------------------------------------------ lanes

const LANE = 18;
const GAP = 5;
const HEAD = 15;
const HEIGHT = HEAD + 3 * LANE + 2 * GAP + 3;
const LABELS = 66;
const NAMES = ["forward", "backward", "optimizer"];

function Lanes({ onHover }: { onHover: (k: number | null) => void }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [width, setWidth] = useState(0);
  const list = events.value;
  const { places, columns } = memo(list);
  useEffect(() => {
    const watch = new ResizeObserver(([box]) => setWidth(box.contentRect.width / enlarged()));
    watch.observe(canvas.current!.parentElement!);
    return () => watch.disconnect();
  }, []);
  const mode = theme();
  useEffect(() => {
    if (width) paintLanes(canvas.current!, width, places, columns, list);
  }, [width, list, at.value, stops.value, mode]);
  const find = (e: MouseEvent) => nearest(e, width, places, columns);
  const move = (e: PointerEvent) => {
    const k = find(e);
    onHover(k);
    if (e.buttons & 1 && k !== null) go(k);
  };
  const now = list[at.value];
  return (
    <div class="lanes" role="slider" tabIndex={0} aria-label="Event" aria-valuemin={0}
      aria-valuemax={list.length - 1} aria-valuenow={at.value}
      aria-valuetext={now ? `${now.phase}: ${now.text}` : ""}>
      <canvas ref={canvas} height={HEIGHT} style={{ height: `${HEIGHT * enlarged()}px` }}
        onPointerMove={move} onPointerLeave={() => onHover(null)}
        onPointerDown={(e) => { const k = find(e); if (k !== null) go(k); }}
        onDblClick={(e) => { const k = find(e); if (k !== null) toggleStop(k); }} />
    </div>
  );
}

let memoOf: Event[] | null = null;
let memoPlaces: ReturnType<typeof placesOf> = { places: [], columns: 1 };
function memo(list: Event[]): ReturnType<typeof placesOf> {
  if (memoOf !== list) memoPlaces = placesOf((memoOf = list));
  return memoPlaces;
}

const laneTop = (lane: number) => HEAD + lane * (LANE + GAP);

function nearest(e: MouseEvent, width: number, places: Place[], columns: number): number | null {
  const { left, top } = (e.currentTarget as HTMLElement).getBoundingClientRect();
  const x = (((e.clientX - left) / enlarged() - LABELS) / (width - LABELS)) * columns;
  const lane = Math.max(0, Math.min(2, Math.floor(((e.clientY - top) / enlarged() - HEAD) / (LANE + GAP))));
  const k = places.findIndex((p) => p.lane === lane && x >= p.x && x < p.x + p.width);
  return k < 0 ? null : k;
}

interface Pen {
  c: CanvasRenderingContext2D;
  unit: number;
  colour: (name: string) => string;
}

function paintLanes(
  canvas: HTMLCanvasElement, width: number, places: Place[], columns: number, list: Event[],
): void {
  const ratio = devicePixelRatio * enlarged();
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(HEIGHT * ratio);
  canvas.style.width = `${width * enlarged()}px`;
  const style = getComputedStyle(canvas);
  const c = canvas.getContext("2d")!;
  c.scale(ratio, ratio);
  c.font = `11px ${style.fontFamily}`;
  c.textBaseline = "middle";
  const known = new Map<string, string>(); // asking the style for each of hundreds takes long
  const colour = (name: string) => {
    if (!known.has(name)) known.set(name, style.getPropertyValue(`--${name}`).trim());
    return known.get(name)!;
  };
  const pen = { c, unit: (width - LABELS) / columns, colour };
  labels(pen, list, places);
  for (const e of list) cell(pen, e, places[e.k]);
  const now = list[at.value];
  if (now) cursor(pen, now, places);
}

function labels({ c, unit, colour }: Pen, list: Event[], places: Place[]): void {
  c.fillStyle = colour("muted");
  NAMES.forEach((name, lane) => c.fillText(name, 0, laneTop(lane) + LANE / 2));
  const all = groups.value.length === list.length ? groups.value : groupsOf(list);
  const forward = list.filter((e) => e.phase === "forward");
  const starts = forward.filter((e, i) => !i || all[e.k] !== all[forward[i - 1].k]);
  let free = 0;
  starts.forEach((e, i) => {
    const x = LABELS + places[e.k].x * unit;
    const next = starts[i + 1] ? LABELS + places[starts[i + 1].k].x * unit : Infinity;
    const end = x + c.measureText(all[e.k]).width + 10;
    c.fillStyle = colour("line");
    c.fillRect(Math.round(x) - 0.5, 2, 1, laneTop(1) + LANE - 2);
    if (x < free || end > next) return;
    c.fillStyle = colour("muted");
    c.fillText(all[e.k], x + 4, 7);
    free = end;
  });
}

function cell({ c, unit, colour }: Pen, e: Event, p: Place): void {
  const gap = unit * p.width > 4 ? 1 : 0.4;
  const x = LABELS + p.x * unit;
  const w = Math.max(0.6, p.width * unit - gap);
  c.fillStyle = colour(`${e.phase}-soft`);
  c.beginPath();
  c.roundRect(x, laneTop(p.lane), w, LANE, Math.min(3, w / 3));
  c.fill();
  if (e.bad) {
    c.fillStyle = colour("bad");
    c.fillRect(x, laneTop(p.lane), Math.max(2, w), 4);
  }
  if (stops.value.has(e.k)) {
    c.fillStyle = colour("stop");
    c.beginPath();
    c.arc(x + w / 2, laneTop(p.lane) + LANE - 4, 2.6, 0, 7);
    c.fill();
  }
  if (p.lane === 2 && w > 40) {
    c.fillStyle = colour("muted");
    c.fillText(e.op, x + 7, laneTop(2) + LANE / 2, w - 10);
  }
}

/** The current event, its twin, and the line that joins them. */
function cursor({ c, unit, colour }: Pen, e: Event, places: Place[]): void {
  const p = places[e.k];
  const x = LABELS + p.x * unit;
  const w = Math.max(3, p.width * unit - 1);
  const other = e.twin === null ? null : places[e.twin];
  if (other) {
    c.fillStyle = colour("ink");
    c.globalAlpha = 0.35;
    c.fillRect(x + w / 2 - 0.75, laneTop(0) + LANE, 1.5, GAP);
    c.fillRect(LABELS + other.x * unit, laneTop(other.lane),
      Math.max(3, other.width * unit - 1), LANE);
    c.globalAlpha = 1;
  }
  c.fillStyle = colour(e.phase);
  c.beginPath();
  c.roundRect(x, laneTop(p.lane) - 1, w, LANE + 2, Math.min(3, w / 3));
  c.fill();
  if (e.bad) {
    c.fillStyle = colour("bad");
    c.fillRect(x, laneTop(p.lane) - 1, w, 5);
  }
}
