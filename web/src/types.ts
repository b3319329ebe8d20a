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

/** recompute: a forward line done again in the backward pass. */
export type Phase = "forward" | "recompute" | "backward" | "update";

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
  /** Whether what was recorded is the run's own program, or the plain one. */
  program?: "own" | "plain";
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

/** The size of things along the layers; null: not in the recording. */
export interface FlowPart {
  name: string;
  x: number | null;
  growth: number | null;
  dx: number | null;
  w: number | null;
  dw: number | null;
  update: number | null;
}

export interface Flow {
  parts: FlowPart[];
  maps: { att: number | null; datt: number | null }[];
}

/** Small attention maps of every layer and head, as shades. */
export interface Maps {
  layers: number;
  heads: number;
  height: number;
  width: number;
  largest: number;
  values: Float32Array;
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

// ------------------------------------------------------------ the gradient bench

/** Numbers that are not finite come as words. */
export type Real = number | string;

export interface BenchOperand {
  name: string;
  adds: boolean;
  dims: string[];
  version: number;
  tensor: string;
  number: number;
  shape: number[];
  dtype: string;
}

export interface BenchPlan {
  k: number;
  op: string;
  forward: number | null;
  device: string;
  dtype: string;
  /** Gradients of the forward's inputs x, and what the recorded backward made of them. */
  maths: { name: string; of: string; x: BenchOperand; recorded: BenchOperand | null }[];
  upstream: { name: string; why_random: string; recorded: BenchOperand | null }[];
  parameters: string[];
  kernel: BenchOperand[];
  stored: boolean;
}

export interface Judged {
  name: string;
  error: Real;
  bound: Real;
  ok: boolean;
}

export interface MathsRow extends Judged {
  of: string;
  cells: number;
  size: number;
  direction: Real;
  worst: { index: number[]; error: Real; numeric: Real; by_hand: Real } | null;
}

export interface KernelRow extends Judged {
  size: number;
  same: boolean;
  worst: { index: number[]; found: Real; true: Real };
}

export interface ModelRow extends Judged {
  numeric: Real;
  by_hand: Real;
}

export interface MathsCheck { rows: MathsRow[]; seed: number }
export interface KernelCheck { rows: KernelRow[]; ran: string | null; why_not_run: string }
export interface ModelCheck { rows: ModelRow[]; loss: Real; parameters: number; tokens: number }

export interface StepPoint { h: number; numeric: Real; error: Real }

export interface Steps {
  of: string;
  name: string;
  index: number[];
  x: Real;
  by_hand: Real;
  norm: Real;
  points: StepPoint[];
  used: StepPoint;
  bound: number;
}

export interface Update {
  tensor: string;
  index: number[];
  t: number;
  decays: boolean;
  symbols: Record<string, string>;
  clip: { factor: string; norm: string | null; max_norm: string };
  lines: { name: string; formula: string; numbers: string; value: string }[];
  results: {
    name: string; by_hand: string; recorded: string; version: number; ulps: number | null;
  }[];
}
