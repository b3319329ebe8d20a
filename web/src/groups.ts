/** Which part of the model an event belongs to, and what stands above what in the lanes. */

import type { Event } from "./types";

export const EMBEDDING = "embed";
export const HEAD = "head";
export const OPTIMIZER = "optim";

/** The part of each event: embed, h0 … hL-1, head, optim.  A backward line belongs where the
 * forward line does that it undoes. */
export function groupsOf(events: Event[]): string[] {
  const found: string[] = [];
  let inside = false; // past the first block of this micro-batch
  for (const e of events) {
    if (e.k && events[e.k - 1].run !== e.run) inside = false;
    if (e.phase === "update") found.push(OPTIMIZER);
    else if (e.phase === "backward" && e.twin !== null) found.push(found[e.twin]);
    else if (e.layer !== null) {
      inside = true;
      found.push(`h${e.layer}`);
    } else found.push(inside ? HEAD : EMBEDDING);
  }
  return found;
}

/** Stretches of events of the same part. */
export function segmentsOf(groups: string[]): { group: string; first: number; last: number }[] {
  const found: { group: string; first: number; last: number }[] = [];
  groups.forEach((group, k) => {
    const open = found[found.length - 1];
    if (open?.group === group) open.last = k;
    else found.push({ group, first: k, last: k });
  });
  return found;
}

/** The parts in the order of the forward pass. */
export function partsOf(groups: string[]): string[] {
  return [...new Set(groups)];
}

export interface Place {
  lane: 0 | 1 | 2;
  /** In columns of forward lines. */
  x: number;
  width: number;
}

/** Where each event stands in the lanes: a backward line below the forward line it undoes, two
 * that undo the same one sharing its column. */
export function placesOf(events: Event[]): { places: Place[]; columns: number } {
  const places: Place[] = new Array(events.length);
  const below = new Map<number, number[]>();
  let columns = 0;
  let last = -1; // the forward line under which the backward pass was last
  for (const e of events) {
    if (e.phase === "forward") places[e.k] = { lane: 0, x: columns++, width: 1 };
    else if (e.phase !== "update") {
      const key = (last = e.twin ?? last); // what undoes no line stands beside the one before
      below.set(key, [...(below.get(key) ?? []), e.k]);
    }
  }
  for (const [forward, ks] of below) {
    const x = places[forward]?.x ?? columns++;
    // Time runs to the left here: the first of two stands on the right.
    ks.forEach((k, i) => {
      const width = 1 / ks.length;
      places[k] = { lane: 1, x: x + (ks.length - 1 - i) * width, width };
    });
  }
  const updates = events.filter((e) => e.phase === "update");
  const width = Math.max(1, columns / 12);
  updates.forEach((e, i) => (places[e.k] = { lane: 2, x: i * width, width }));
  return { places, columns: Math.max(columns, updates.length * width, 1) };
}
