/** Curves on a canvas: as many points as there are, no more lines than pixels. */

export interface Series {
  colour: string;
  x: number[];
  y: number[];
  faint?: boolean;
  dots?: boolean;
}

export interface Chart {
  series: Series[];
  /** Marks on the x axis: recordings. */
  marks: { x: number; colour: string; full: boolean }[];
  x0: number;
  x1: number;
  log: boolean;
  cursor: number | null;
  format: (y: number) => string;
  formatX: (x: number) => string;
}

const LEFT = 58;
const RIGHT = 14;
const TOP = 10;
const BOTTOM = 24;

export interface Frame {
  width: number;
  height: number;
  x: (value: number) => number;
  y: (value: number) => number;
}

/** The y range: of what is finite, in which the curves fill the picture. */
function range(c: Chart): [number, number] {
  let low = Infinity;
  let high = -Infinity;
  for (const s of c.series) {
    for (const y of s.y) {
      if (!Number.isFinite(y) || (c.log && y <= 0)) continue;
      if (y < low) low = y;
      if (y > high) high = y;
    }
  }
  if (low > high) return c.log ? [1e-3, 1] : [0, 1];
  if (low === high) return c.log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
  const pad = 0.04 * (high - low);
  return c.log ? [low / 1.05, high * 1.05] : [low >= 0 && low < pad ? 0 : low - pad, high + pad];
}

export const valueAt = (c: Chart, width: number, px: number): number =>
  c.x0 + (c.x1 - c.x0) * Math.max(0, Math.min(1, (px - LEFT) / (width - LEFT - RIGHT)));

export function draw(canvas: HTMLCanvasElement, c: Chart, width: number, height: number): void {
  const ratio = devicePixelRatio;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const to = canvas.getContext("2d")!;
  to.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const [low, high] = range(c);
  const scale = (y: number) => (c.log ? Math.log(y / low) / Math.log(high / low)
    : (y - low) / (high - low));
  const f: Frame = {
    width, height,
    x: (v) => LEFT + ((v - c.x0) / (c.x1 - c.x0 || 1)) * (width - LEFT - RIGHT),
    y: (v) => height - BOTTOM - scale(v) * (height - TOP - BOTTOM),
  };
  to.font = `${11}px ${style.fontFamily}`;
  axes(to, c, f, low, high, colour("line"), colour("muted"));
  to.save();
  to.beginPath();
  to.rect(LEFT, TOP - 6, width - LEFT - RIGHT, height - TOP - BOTTOM + 12);
  to.clip();
  c.series.forEach((s) => line(to, f, s, c.log, colour("bad")));
  to.restore();
  c.marks.forEach((m) => mark(to, f.x(m.x), height - BOTTOM, m.colour, m.full, colour("surface")));
  if (c.cursor !== null) pointer(to, c, f, colour("muted"), colour("surface"));
}

function axes(
  to: CanvasRenderingContext2D, c: Chart, f: Frame, low: number, high: number,
  soft: string, ink: string,
): void {
  to.strokeStyle = soft;
  to.lineWidth = 1;
  to.fillStyle = ink;
  to.textAlign = "right";
  to.textBaseline = "middle";
  const rows = c.log ? decades(low, high) : ticks(low, high, Math.max(2, f.height / 46));
  for (const y of rows) {
    const at = Math.round(f.y(y)) + 0.5;
    to.beginPath();
    to.moveTo(LEFT, at);
    to.lineTo(f.width - RIGHT, at);
    to.stroke();
    to.fillText(c.format(y), LEFT - 7, at);
  }
  to.textBaseline = "alphabetic";
  to.textAlign = "center";
  for (const x of ticks(c.x0, c.x1, Math.max(2, f.width / 110))) {
    to.fillText(c.formatX(x), f.x(x), f.height - 6);
  }
}

export function ticks(low: number, high: number, most: number): number[] {
  const rough = (high - low) / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((n) => n * unit >= rough)!;
  const found: number[] = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-9); i++) found.push(i * step);
  return found;
}

function decades(low: number, high: number): number[] {
  const found: number[] = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++) {
    for (const n of high / low < 30 ? [1, 2, 5] : [1]) {
      if (n * 10 ** e >= low && n * 10 ** e <= high) found.push(n * 10 ** e);
    }
  }
  return found.length > 2 ? found : ticks(low, high, 5);
}

/** A pixel column holds from its lowest to its highest point; what is not finite is marked. */
function line(
  to: CanvasRenderingContext2D, f: Frame, s: Series, log: boolean, odd: string,
): void {
  to.strokeStyle = to.fillStyle = s.colour;
  to.globalAlpha = s.faint ? 0.28 : 1;
  to.lineWidth = s.faint ? 1 : 1.7;
  to.setLineDash(s.dots ? [2, 5] : []);
  to.lineJoin = "round";
  const bad: number[] = [];
  let pen = false;
  let column = NaN;
  let low = 0;
  let high = 0;
  let last = 0;
  const flush = () => {
    if (Number.isNaN(column)) return;
    if (high - low > 0.5) {
      to.lineTo(column, low);
      to.lineTo(column, high);
    }
    to.lineTo(column, last);
  };
  to.beginPath();
  for (let i = 0; i < s.x.length; i++) {
    const x = f.x(s.x[i]);
    if (!Number.isFinite(s.y[i]) || (log && s.y[i] <= 0)) {
      flush();
      column = NaN;
      pen = false;
      if (!Number.isFinite(s.y[i])) bad.push(x);
      continue;
    }
    const y = f.y(s.y[i]);
    if (!pen) to.moveTo(x, y);
    if (pen && Math.abs(x - column) < 0.5) {
      low = Math.min(low, y);
      high = Math.max(high, y);
    } else {
      flush();
      column = x;
      low = high = y;
    }
    last = y;
    pen = true;
  }
  flush();
  to.stroke();
  to.setLineDash([]);
  if (s.dots || s.x.length === 1) dots(to, f, s);
  to.globalAlpha = 1;
  to.fillStyle = odd;
  bad.forEach((x) => to.fillRect(x - 1.5, TOP, 3, 9));
}

function dots(to: CanvasRenderingContext2D, f: Frame, s: Series): void {
  s.x.forEach((x, i) => {
    if (!Number.isFinite(s.y[i])) return;
    to.beginPath();
    to.arc(f.x(x), f.y(s.y[i]), 3, 0, 7);
    to.fill();
  });
}

function mark(
  to: CanvasRenderingContext2D, x: number, y: number, colour: string, full: boolean, paper: string,
): void {
  to.beginPath();
  to.moveTo(x, y - 5);
  to.lineTo(x + 5, y);
  to.lineTo(x, y + 5);
  to.lineTo(x - 5, y);
  to.closePath();
  to.fillStyle = full ? colour : paper;
  to.strokeStyle = colour;
  to.lineWidth = 1.4;
  to.fill();
  to.stroke();
}

function pointer(
  to: CanvasRenderingContext2D, c: Chart, f: Frame, ink: string, paper: string,
): void {
  const x = Math.round(f.x(c.cursor!)) + 0.5;
  to.strokeStyle = ink;
  to.lineWidth = 1;
  to.beginPath();
  to.moveTo(x, TOP);
  to.lineTo(x, f.height - BOTTOM);
  to.stroke();
  for (const s of c.series) {
    if (s.faint || s.dots) continue;
    let i = s.x.findIndex((v) => v > c.cursor!);
    i = (i < 0 ? s.x.length : i) - 1;
    if (i < 0 || !Number.isFinite(s.y[i]) || (c.log && s.y[i] <= 0)) continue;
    to.beginPath();
    to.arc(f.x(s.x[i]), f.y(s.y[i]), 4, 0, 7);
    to.fillStyle = s.colour;
    to.strokeStyle = paper;
    to.lineWidth = 2;
    to.fill();
    to.stroke();
  }
}
