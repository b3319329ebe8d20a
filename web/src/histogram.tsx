/** How many numbers there are of each size, by powers of two, negatives on the left. */

import { useEffect, useRef } from "preact/hooks";

import { css, theme } from "./colour";
import { count, enlarged } from "./format";
import type { Histogram as Counts } from "./types";

const WIDTH = 276;
const HEIGHT = 84;
const FLOOR = 15;
const TICKS: [number, string][] = [[0, "1"], [-10, "10⁻³"], [-20, "10⁻⁶"]];

export function Histogram({ h }: { h: Counts | null }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const mode = theme();
  useEffect(() => {
    if (h) draw(canvas.current!, h);
  }, [h, mode]);
  const words = h ? `Histogram of ${count(h.counted)} of ${count(h.size)} numbers` : "No histogram";
  return (
    <figure class="histogram">
      <canvas ref={canvas} role="img" aria-label={words}
        style={{ width: `${WIDTH * enlarged()}px`, height: `${HEIGHT * enlarged()}px` }} />
      <figcaption class="muted">
        {h ? <>
          {count(h.zeros)} zeros · heights are logarithms of counts
          {h.counted < h.size - h.zeros && <> · {count(h.counted)} sampled</>}
        </> : "recorded without a histogram"}
      </figcaption>
    </figure>
  );
}

function draw(canvas: HTMLCanvasElement, h: Counts): void {
  const ratio = devicePixelRatio * enlarged();
  canvas.width = WIDTH * ratio;
  canvas.height = HEIGHT * ratio;
  const c = canvas.getContext("2d")!;
  c.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const half = h.bins.length / 2;
  const bar = (WIDTH - 8) / (2 * half);
  const at = (bin: number) => bin * bar + (bin >= half ? 8 : 0); // the gap is where zero is
  const top = Math.log1p(Math.max(1, ...h.bins));
  const floor = HEIGHT - FLOOR;
  h.bins.forEach((n, bin) => {
    if (!n) return;
    const tall = Math.max(1.5, (Math.log1p(n) / top) * (floor - 4));
    c.fillStyle = css(bin < half ? -0.5 : 0.5, { top: 1, root: false });
    c.fillRect(at(bin) + 0.5, floor - tall, bar - 1, tall);
  });
  c.fillStyle = style.getPropertyValue("--line");
  c.fillRect(0, floor, WIDTH, 1);
  c.fillStyle = style.getPropertyValue("--muted");
  c.font = `9.5px ${style.fontFamily}`;
  c.textAlign = "center";
  c.fillText("0", at(half) - 4, HEIGHT - 3);
  for (const [exponent, name] of TICKS) {
    const i = exponent - h.lowest_exponent;
    c.fillText(name, at(half + i), HEIGHT - 3);
    c.fillText(`−${name}`, at(half - i), HEIGHT - 3);
  }
}
