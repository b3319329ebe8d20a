/** Left: all parts of the model along the residual stream; beside them the part that is being
 * executed, drawn as GPT-2 is built: a spine, and branches that read it and add to it. */

import { computed } from "@preact/signals";

import { EMBEDDING, HEAD, OPTIMIZER, partsOf } from "./groups";
import { current, events, go, groups } from "./state";
import type { Event } from "./types";

const NAMES: Record<string, string> = {
  [EMBEDDING]: "embedding", [HEAD]: "head", [OPTIMIZER]: "optimizer",
};

interface Part {
  name: string;
  first: number;
  badForward: boolean;
  badBackward: boolean;
}

const parts = computed<Part[]>(() =>
  partsOf(groups.value).map((name) => {
    const own = events.value.filter((e) => groups.value[e.k] === name);
    return {
      name,
      first: own[0].k,
      badForward: own.some((e) => e.bad && e.phase !== "backward"),
      badBackward: own.some((e) => e.bad && e.phase === "backward"),
    };
  }));

export function Spine() {
  const here = groups.value[current.value?.k ?? 0];
  return (
    <nav class="spine" aria-label="Layers">
      <Tree here={here} />
      <Map here={here} />
    </nav>
  );
}

function Tree({ here }: { here: string }) {
  const move = (e: KeyboardEvent) => {
    if (e.key !== "ArrowDown" && e.key !== "ArrowUp") return;
    e.preventDefault();
    e.stopPropagation();
    const items = [...(e.currentTarget as HTMLElement).querySelectorAll("button")];
    const i = items.indexOf(document.activeElement as HTMLButtonElement);
    items[i + (e.key === "ArrowDown" ? 1 : -1)]?.focus();
  };
  return (
    <div class="tree" role="tree" aria-label="Parts of the model" onKeyDown={move}>
      {parts.value.map((p) => (
        <button key={p.name} role="treeitem" aria-selected={p.name === here} data-part={p.name}
          tabIndex={p.name === here ? 0 : -1} onClick={() => go(p.first)}
          aria-label={`${NAMES[p.name] ?? p.name}, ${healthWords(p)}`}>
          <i class={`dot ${p.badForward ? "bad" : ""}`} />
          <i class={`dot back ${p.badBackward ? "bad" : ""} ${p.name === OPTIMIZER ? "none" : ""}`} />
          <span>{p.name}</span>
        </button>
      ))}
    </div>
  );
}

function healthWords(p: Part): string {
  const where = [p.badForward && "forward", p.badBackward && "backward"].filter(Boolean);
  return where.length ? `not finite in ${where.join(" and ")}` : "all finite";
}

// ------------------------------------------------------------ the map

const WIDTH = 172;
const SPINE = 20;
const BRANCH = 104; // middle of the branch's boxes
const BOX = { width: 124, height: 22 };
const STEP = 33;
const TOP = 26;

interface Node {
  e: Event;
  /** The lines of the backward pass that undo this one. */
  back: Event[];
  label: string;
  spine: boolean;
  y: number;
}

/** The forward lines of a part (of one micro-batch), each with its backward lines. */
function nodesOf(here: string, now: Event | null): Node[] {
  const run = now && now.phase !== "update" ? now.run : null;
  const own = events.value.filter(
    (e) => groups.value[e.k] === here && (run === null || e.run === run));
  const forward = own.filter((e) => e.phase === "forward" || e.phase === "update");
  return forward.map((e, i) => ({
    e,
    back: own.filter((b) => b.phase === "backward" && b.twin === e.k),
    label: outputOf(e),
    spine: e.op === "add",
    y: TOP + 18 + i * STEP,
  }));
}

/** The name of what a line makes first, without its layer. */
function outputOf(e: Event): string {
  if (e.phase === "update") return e.text.split(" = ")[0].split(",")[0];
  return e.text.split(/[+,\s=]/)[0].replace(/^h\d+\./, "");
}

function Map({ here }: { here: string }) {
  const now = current.value;
  const nodes = nodesOf(here, now);
  const height = TOP + 18 + nodes.length * STEP + 20;
  const backward = now?.phase === "backward";
  const block = here.startsWith("h") && here !== HEAD;
  return (
    <svg class={`map ${backward ? "reversed" : ""}`} viewBox={`0 0 ${WIDTH} ${Math.max(height, 470)}`}
      preserveAspectRatio="xMidYMin meet" role="group" aria-label={`Map of ${NAMES[here] ?? here}`}>
      <text class="part" x={SPINE - 8} y={12}>{block ? `block ${here.slice(1)}` : NAMES[here]}</text>
      {here !== OPTIMIZER && <Stream nodes={nodes} here={here} backward={backward} />}
      {branches(nodes).map((branch) => (
        <Branch nodes={branch} here={here} backward={backward} key={branch[0].e.k} />
      ))}
      {nodes.map((n) => <Box n={n} now={now} key={n.e.k} />)}
    </svg>
  );
}

/** The spine itself: x goes in at the top and comes out at the bottom, in the backward pass dx the
 * other way. */
function Stream({ nodes, here, backward }: { nodes: Node[]; here: string; backward: boolean }) {
  const last = nodes[nodes.length - 1]?.y ?? TOP;
  const top = here === EMBEDDING ? nodes[0].y + BOX.height / 2 : TOP - 4;
  const bottom = here === HEAD ? nodes[0].y : last + 26;
  const from = backward ? bottom : top;
  const to = backward ? top : bottom;
  const tip = backward ? 6 : -6;
  return (
    <g class="stream">
      <path d={`M${SPINE} ${from}V${to}`} />
      <path class="tip" d={`M${SPINE - 4} ${to + tip}L${SPINE} ${to}L${SPINE + 4} ${to + tip}`} />
    </g>
  );
}

/** What lies between two additions. */
function branches(nodes: Node[]): Node[][] {
  const found: Node[][] = [];
  let open: Node[] = [];
  for (const n of nodes) {
    if (!n.spine) open.push(n);
    else if (open.length) {
      found.push([...open, n]);
      open = [];
    }
  }
  if (open.length) found.push(open);
  return found;
}

/** A branch leaves the spine, runs down through its boxes, and comes back where it is added. */
function Branch({ nodes, here, backward }: { nodes: Node[]; here: string; backward: boolean }) {
  const first = nodes[0];
  const last = nodes[nodes.length - 1];
  const inner = nodes.filter((n) => !n.spine);
  const low = inner[inner.length - 1];
  const left = BRANCH - BOX.width / 2;
  const out = here === EMBEDDING || here === OPTIMIZER ? "" :
    `M${SPINE} ${first.y - 17}H${BRANCH - 14}Q${BRANCH} ${first.y - 17} ${BRANCH} ${first.y - 11}`;
  const back = last.spine
    ? `M${BRANCH} ${low.y + 11}V${last.y - 8}Q${BRANCH} ${last.y} ${BRANCH - 10} ${last.y}H${SPINE + 9}`
    : here === EMBEDDING ? `M${left} ${low.y}H${SPINE + 8}Q${SPINE} ${low.y} ${SPINE} ${low.y + 8}`
      : "";
  return (
    <g class={`branch ${backward ? "back" : ""}`}>
      <path d={`${out}M${BRANCH} ${first.y}V${low.y}${back}`} />
    </g>
  );
}

function Box({ n, now }: { n: Node; now: Event | null }) {
  const on = now?.k === n.e.k ? now.phase : n.back.some((b) => b.k === now?.k) ? "backward" : "";
  const bad = n.e.bad || n.back.some((b) => b.bad);
  const target = on === "backward" ? n.e.k : on && n.back.length ? n.back[0].k : n.e.k;
  const act = () => go(target);
  return (
    <g class={`box ${on} ${bad ? "bad" : ""} ${n.spine ? "plus" : ""}`} role="button" onClick={act}
      aria-label={`${n.label}, ${n.e.op}${bad ? ", not finite" : ""}`} data-op={n.e.op}>
      {n.spine ? <Plus n={n} /> : (
        <>
          <rect x={BRANCH - BOX.width / 2} y={n.y - BOX.height / 2} width={BOX.width}
            height={BOX.height} rx={6} />
          <text class="out" x={BRANCH - BOX.width / 2 + 9} y={n.y + 4}>{n.label}</text>
          <text class="op" x={BRANCH + BOX.width / 2 - 8} y={n.y + 3.5}>{brief(n.e.op)}</text>
        </>
      )}
    </g>
  );
}

function Plus({ n }: { n: Node }) {
  return (
    <>
      <circle cx={SPINE} cy={n.y} r={8.5} />
      <path d={`M${SPINE - 4} ${n.y}h8M${SPINE} ${n.y - 4}v8`} />
      <text class="out" x={SPINE + 15} y={n.y - 5}>{n.label}</text>
    </>
  );
}

const brief = (op: string): string => op.replace("causal_", "").replace("softmax_xent", "xent");
