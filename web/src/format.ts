/** Numbers and names as people read them. */

/** What canvases are drawn larger by on a screen of 4K, as the style sheets do with the rest. */
export const enlarged = (): number => (innerWidth >= 3400 ? 1.6 : 1);

/** Four significant digits, of constant width class: no jumping columns while stepping. */
export function short(x: number | string | null | undefined): string {
  if (x === null || x === undefined) return "–";
  if (typeof x === "string") return x; // JSON has no infinity: the server says it in words
  if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-3 ? x.toExponential(2) : x.toPrecision(4);
  return text.replace("e+", "e").replaceAll("-", "−");
}

/** Three digits, for narrow columns; the inspector has more. */
export function brief(x: number | string): string {
  if (typeof x === "string" || !Number.isFinite(x) || x === 0) return short(x);
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-3 ? x.toExponential(1) : x.toPrecision(3);
  return (text.includes("e") && size < 1e5 && size >= 1e3 ? x.toFixed(0) : text)
    .replace("e+", "e").replaceAll("-", "−");
}

export const count = (n: number): string => n.toLocaleString("en-US");

export function bytes(n: number): string {
  return n >= 1e6 ? `${(n / 1e6).toFixed(1)} MB` : `${Math.ceil(n / 1e3)} kB`;
}

export const size = (shape: number[]): number => shape.reduce((a, b) => a * b, 1);

/** A tensor seen as a matrix: all axes but the last are rows. */
export function matrix(shape: number[]): { rows: number; columns: number } {
  const columns = shape.length ? shape[shape.length - 1] : 1;
  return { rows: size(shape) / Math.max(1, columns), columns };
}

/** The index of a matrix cell in the tensor, one number an axis. */
export function unravel(shape: number[], row: number, column: number): number[] {
  const index = shape.length ? [column] : [];
  for (let axis = shape.length - 2; axis >= 0; axis--) {
    index.unshift(row % shape[axis]);
    row = Math.floor(row / shape[axis]);
  }
  return index;
}

/** The other way. */
export function ravel(shape: number[], index: number[]): { row: number; column: number } {
  let row = 0;
  for (let axis = 0; axis < shape.length - 1; axis++) row = row * shape[axis] + index[axis];
  return { row, column: shape.length ? index[index.length - 1] : 0 };
}

/** Axis names; where the server gave none, positions. */
export function axes(dims: string[], shape: number[]): string[] {
  return shape.map((n, i) => (dims.length === shape.length ? dims[i] : `${n}`));
}

const LETTERS: Record<string, string> = { NH: "h", HS: "i", Vp: "v", P: "t", 3: "qkv" };

/** The index letter of an axis: T becomes t, NH the head h. */
export const letter = (dim: string): string =>
  LETTERS[dim] ?? (/^\d/.test(dim) ? "i" : dim.toLowerCase());

/** A token as it can be seen: spaces and line ends have signs. */
export function visible(token: string): string {
  return token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
}

/** |a − b| in units of b. */
export function gap(a: number | string, b: number | string): string {
  if (typeof a === "string" || typeof b === "string") return a === b ? "0" : "?";
  const ratio = Math.abs(a - b) / (Math.abs(b) || 1);
  return ratio === 0 ? "0" : ratio.toExponential(0).replaceAll("-", "−");
}
