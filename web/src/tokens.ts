/** The token under an index of the T axis: its text, from the ids that the step was given. */

import { signal } from "@preact/signals";

import * as api from "./api";
import { visible } from "./format";
import { events, recording } from "./state";

/** For a micro-batch: text of token t of sequence b. */
export type Tokens = string[][];

const known = signal<Map<string, Tokens>>(new Map());
const asked = new Set<string>();

/** The tokens of the micro-batch that an event belongs to; null while they come, or if unknown. */
export function tokensOf(r: string, run: number): Tokens | null {
  const key = `${r} ${run}`;
  const had = known.value.get(key);
  if (had || asked.has(key)) return had ?? null;
  asked.add(key);
  load(r, run).then(
    (tokens) => tokens && (known.value = new Map(known.value).set(key, tokens)), () => null);
  return null;
}

async function load(r: string, run: number): Promise<Tokens | null> {
  const text = recording.value?.text ?? {};
  const embed = events.value.find((e) => e.run === run && e.op === "embed");
  if (!embed) return null;
  const ids = (await api.event(r, embed.k)).ins.find((o) => o.name === "ids")?.version;
  if (!ids?.stored || ids.shape.length !== 2) return null;
  const [B, T] = ids.shape;
  const rows = Math.max(1, Math.floor(4096 / T));
  const found: Tokens = [];
  for (let b = 0; b < B; b += rows) {
    const height = Math.min(rows, B - b);
    const part = await api.cells(r, ids.id, b, 0, height, Math.min(T, 4096));
    found.push(...part.map((row) => row.map((id) => visible(text[id] ?? ""))));
  }
  return found;
}

/** What an index along an axis means: of a token's place the token, of qkv which of the three. */
export function tokenAt(
  tokens: Tokens | null, dims: string[], index: number[], axis: number,
): string {
  if (dims[axis] === "3") return "qkv"[index[axis]] ?? "";
  if (!tokens || dims[axis] !== "T") return "";
  const b = dims.indexOf("B");
  return tokens[b < 0 ? 0 : index[b]]?.[index[axis]] ?? "";
}
