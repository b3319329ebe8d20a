/** What the server says.  The contract is the server's module; names are the same on both sides. */

export interface RecordingInfo {
  id: string;
  step: number;
  level: number;
  events: number;
  complete: boolean;
  device: string;
  dtype: string;
  /** Its folder. */
  name: string;
  fork?: Fork;
  problem?: string;
}

export interface Edit {
  tensor: string;
  number: number;
  index: number[];
  value: string;
}

/** A what-if: of which recording, and what was edited after which event. */
export interface Fork {
  of: string;
  event: number | null;
  edits: Edit[];
}

export interface Run {
  id: string;
  name: string;
  preset: string;
  recordings: RecordingInfo[];
}

export type Phase = "forward" | "backward" | "update";

export interface Event {
  k: number;
  run: number;
  phase: Phase;
  op: string;
  layer: number | null;
  text: string;
  model: string;
  kernel: string;
  first_line: number;
  last_line: number;
  ms: number;
  twin: number | null;
  bad: boolean;
  first: number;
}

export interface Own {
  attention: string;
  fused: string[];
  recompute: string;
  loss: number | string; // not finite: a word
  grad_norm: number | string;
}

export interface Manifest {
  complete: boolean;
  backglass: string;
  step: number;
  level: number;
  device: string;
  dtype: string;
  config: Record<string, number | string>;
  events: number;
  runs: number;
  loss?: number | string;
  grad_norm?: number | string;
  own?: Own;
  fork?: Fork;
  sources?: Record<string, string>;
  left_out: number;
}

export interface Recording {
  manifest: Manifest;
  text: Record<string, string>;
  events: Event[];
}

export interface Statistics {
  min: number;
  max: number;
  mean: number;
  std: number;
  norm: number;
  zeros: number;
  nans: number;
  infs: number;
}

export interface Version {
  id: number;
  tensor: string;
  number: number;
  event: number | null;
  shape: number[];
  dtype: string;
  kind: string;
  hash: string;
  constant: boolean;
  stored: boolean;
  statistics: Statistics;
  bad: number[][];
  pictured: boolean;
}

export interface Operand {
  name: string;
  adds: boolean;
  dims: string[];
  version: Version;
}

export interface EventDetail extends Event {
  attrs: Record<string, unknown>;
  ins: Operand[];
  outs: Operand[];
}

export interface VersionDetail extends Version {
  made_by: number | null;
  used_by: number[];
  previous: number | null;
  next: number | null;
  dims: string[];
}

export interface Histogram {
  bins: number[];
  lowest_exponent: number;
  zeros: number;
  nans: number;
  infs: number;
  size: number;
  counted: number;
}

export interface Source {
  lines: [string, string][][];
  /** Whether today's file differs; null: there is none in the package. */
  changed: boolean | null;
}

export interface Maths {
  sentence: string;
  forward: string;
  backward: string;
  derivation: string[];
  saved: string;
  source: string;
  numpy: string;
}

export interface Divergence {
  event: number | null;
  text: string;
  tensor: string;
}

export interface Verdict {
  agreed: number;
  diverged: Divergence | null;
  damaged: Version[];
}

/** A matrix of blocks: smallest, largest and mean finite number of each, and how many are not. */
export interface Planes {
  down: number;
  across: number;
  min: Float32Array;
  max: Float32Array;
  mean: Float32Array;
  bad: Float32Array;
}

/** A piece of the tensor: at level 0 its numbers, else blocks of 2^level × 2^level of them. */
export interface Tile {
  height: number;
  width: number;
  values: Float32Array | null;
  planes: Planes | null;
}
