/** The error of a central difference against its step size, both by powers of ten: a large step
 * errs by what it leaves out, a small one by what float64 rounds off. */

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { theme } from "./colour";
import { short } from "./format";
import type { Real, StepPoint, Steps } from "./types";

const HEIGHT = 232;
const LEFT = 40;
const RIGHT = 12;
const TOP = 22;
const BOTTOM = 34;
const H = [-12, -1]; // powers of ten, from left to right
const E = [-16, 0]; // and from bottom to top

export function StepCurve({ steps, children }: {
  steps: Steps | null; children: ComponentChildren;
}) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [width, setWidth] = useState(0);
  const mode = theme();
  useEffect(() => {
    const watch = new ResizeObserver(([box]) => setWidth(box.contentRect.width));
    watch.observe(canvas.current!.parentElement!);
    return () => watch.disconnect();
  }, []);
  useEffect(() => {
    if (width) draw(canvas.current!, width, steps);
  }, [steps, width, mode]);
  return (
    <>
      <figure class="curve">
        <canvas ref={canvas} role="img" aria-label={steps ? spoken(steps) : "No curve yet"}
          style={{ height: `${HEIGHT * unit()}px` }} />
      </figure>
      <p class="muted caption">
        The line is (φ(x + h) − φ(x − h))/2h; the dot is the check's own difference, of fourth order.
        Errors are fractions of the gradient's norm.
      </p>
      {children}
      <Numbers steps={steps} />
      {steps && <Points steps={steps} />}
    </>
  );
}

function Numbers({ steps }: { steps: Steps | null }) {
  const rows: [string, string, Real | undefined, (x: Real) => string][] = [
    ["by hand", "by hand", steps?.by_hand, String],
    ["by differences", "numeric", steps?.used.numeric, String],
    ["error", "error", steps?.used.error, short],
    ["step h", "h", steps?.used.h, short],
  ];
  return (
    <dl class="numbers">
      {rows.map(([title, name, x, text]) => (
        <div key={name}>
          <dt>{title}</dt>
          <dd class="num" data-steps={name} data-value={x}>{x === undefined ? "–" : text(x)}</dd>
        </div>
      ))}
    </dl>
  );
}

/** The same as a table, for whoever does not see the picture. */
function Points({ steps }: { steps: Steps }) {
  return (
    <table class="unseen" data-testid="step-points">
      <caption>Error of the central difference for each step size</caption>
      <thead><tr><th>h</th><th>difference</th><th>error</th></tr></thead>
      <tbody>
        {steps.points.map((p) => (
          <tr key={p.h}><td>{p.h}</td><td>{String(p.numeric)}</td><td>{String(p.error)}</td></tr>
        ))}
      </tbody>
    </table>
  );
}

const real = (x: Real): number => (typeof x === "number" ? x : 1);

function best(steps: Steps): StepPoint {
  return steps.points.reduce((a, b) => (real(b.error) < real(a.error) ? b : a));
}

/** Where a large step errs, the cell is not linear: the error grows again on the right. */
export function truncates(steps: Steps): boolean {
  const low = best(steps);
  return real(steps.points[0].error) > 100 * Math.max(real(low.error), 1e-15);
}

function spoken(steps: Steps): string {
  const low = best(steps);
  const right = truncates(steps) ? "larger steps truncate" : "it is linear: nothing is truncated";
  return `Error against step size: least, ${low.error}, at h = ${low.h}; smaller steps round off, `
    + right;
}

/** Sizes here are for a page set in 13 px; on large screens it is larger. */
const unit = (): number => parseFloat(getComputedStyle(document.documentElement).fontSize) / 13;

function draw(canvas: HTMLCanvasElement, across: number, steps: Steps | null): void {
  const ratio = devicePixelRatio * unit();
  const width = across / unit();
  canvas.style.width = `${across}px`;
  canvas.width = width * ratio;
  canvas.height = HEIGHT * ratio;
  const c = canvas.getContext("2d")!;
  c.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const colour = (name: string) => style.getPropertyValue(name);
  c.font = `10px ${style.fontFamily}`;
  grid(c, width, colour);
  if (!steps) return;
  limit(c, width, steps.bound, colour);
  sides(c, width, steps, colour);
  c.strokeStyle = colour("--backward");
  c.lineWidth = 1.75;
  c.beginPath();
  steps.points.forEach((p, i) => c[i ? "lineTo" : "moveTo"](x(p.h, width), y(p.error)));
  c.stroke();
  c.fillStyle = colour("--backward");
  for (const p of steps.points) dot(c, x(p.h, width), y(p.error), 2.4);
  c.fillStyle = colour("--update");
  dot(c, x(steps.used.h, width), y(steps.used.error), 5);
  c.textAlign = "center";
  const below = y(steps.used.error) < HEIGHT - BOTTOM - 24;
  c.fillText("the check", x(steps.used.h, width), y(steps.used.error) + (below ? 18 : -10));
}

const x = (h: number, width: number): number =>
  LEFT + ((Math.log10(h) - H[0]) / (H[1] - H[0])) * (width - LEFT - RIGHT);

function y(error: Real): number {
  const power = Math.max(E[0], Math.min(E[1], Math.log10(Math.max(real(error), 1e-300))));
  return TOP + ((E[1] - power) / (E[1] - E[0])) * (HEIGHT - TOP - BOTTOM);
}

function dot(c: CanvasRenderingContext2D, at: number, level: number, r: number): void {
  c.beginPath();
  c.arc(at, level, r, 0, 7);
  c.fill();
}

type Colour = (name: string) => string;

const SUPER = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const power = (n: number): string =>
  n === 0 ? "1" : `10⁻${[...String(-n)].map((digit) => SUPER[Number(digit)]).join("")}`;

function grid(c: CanvasRenderingContext2D, width: number, colour: Colour): void {
  c.fillStyle = colour("--muted");
  c.strokeStyle = colour("--line");
  c.lineWidth = 1;
  c.textAlign = "right";
  for (let e = E[0]; e <= E[1]; e += 4) {
    const level = Math.round(y(10 ** e)) + 0.5;
    c.beginPath();
    c.moveTo(LEFT, level);
    c.lineTo(width - RIGHT, level);
    c.stroke();
    c.fillText(power(e), LEFT - 6, level + 3);
  }
  c.textAlign = "center";
  for (let h = H[0]; h <= H[1]; h += 2) {
    c.fillText(power(h), x(10 ** h, width), HEIGHT - BOTTOM + 15);
  }
  c.fillText("step size h", LEFT + (width - LEFT - RIGHT) / 2, HEIGHT - 5);
}

function limit(c: CanvasRenderingContext2D, width: number, bound: number, colour: Colour): void {
  c.strokeStyle = colour("--good");
  c.setLineDash([4, 3]);
  c.beginPath();
  c.moveTo(LEFT, y(bound));
  c.lineTo(width - RIGHT, y(bound));
  c.stroke();
  c.setLineDash([]);
  c.fillStyle = colour("--good");
  c.textAlign = "right";
  c.fillText("bound", width - RIGHT, y(bound) - 4);
}

function sides(c: CanvasRenderingContext2D, width: number, steps: Steps, colour: Colour): void {
  c.fillStyle = colour("--text");
  c.textAlign = "left";
  c.fillText("← round-off ∝ 1/h", LEFT, 12);
  c.textAlign = "right";
  const right = truncates(steps) ? "truncation ∝ h² →" : "linear here: nothing is truncated";
  c.fillText(right, width - RIGHT, 12);
}
