/** A tensor as a small picture: the means of at most 32 × 32 blocks. */

import { useEffect, useRef } from "preact/hooks";

import * as api from "./api";
import { largest, paint, theme } from "./colour";
import type { Planes, Version } from "./types";

export function Thumb({ r, version }: { r: string; version: Version }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const mode = theme();
  useEffect(() => {
    const put = (planes: Planes) => canvas.current && draw(canvas.current, planes);
    if (!version.pictured) {
      flat(canvas.current!, version);
      return;
    }
    const held = api.heldPicture(r, version.id);
    if (held) {
      put(held);
      return;
    }
    const fetching = new AbortController();
    api.picture(r, version.id, fetching.signal).then(put).catch(() => null);
    return () => fetching.abort();
  }, [r, version.id, mode]);
  return <canvas ref={canvas} class="thumb" width={1} height={1} aria-hidden="true" />;
}

function draw(canvas: HTMLCanvasElement, p: Planes): void {
  canvas.width = p.across;
  canvas.height = p.down;
  const scale = { top: largest(p.mean), root: true };
  canvas.getContext("2d")!.putImageData(paint(p.mean, p.bad, p.across, p.down, scale), 0, 0);
}

/** One colour: the tensor is constant, or was recorded without pictures. */
function flat(canvas: HTMLCanvasElement, v: Version): void {
  canvas.width = canvas.height = 1;
  const x = v.constant ? Math.sign(v.statistics.min) * 0.25 : 0;
  const bad = new Float32Array([v.statistics.nans + v.statistics.infs]);
  const image = paint(new Float32Array([x]), bad, 1, 1, { top: 1, root: false });
  canvas.getContext("2d")!.putImageData(image, 0, 0);
}
