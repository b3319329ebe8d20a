/** Colours of numbers: warm is positive, cool negative, paper zero; what is not finite stands out
 * from both.  Orange and blue are told apart in every common form of colour blindness, and lightness
 * alone orders each half. */

import { signal } from "@preact/signals";

import { forGood } from "./storage";

export type Theme = "light" | "dark";

type Rgb = [number, number, number];

// From zero outwards, evenly spaced.
const RAMPS: Record<Theme, { warm: Rgb[]; cool: Rgb[] }> = {
  light: {
    warm: [[250, 248, 243], [246, 214, 170], [233, 160, 90], [196, 96, 34], [110, 44, 12]],
    cool: [[250, 248, 243], [188, 214, 232], [108, 164, 208], [45, 104, 165], [14, 50, 99]],
  },
  dark: {
    warm: [[27, 28, 34], [84, 51, 27], [166, 88, 32], [238, 152, 74], [255, 226, 184]],
    cool: [[27, 28, 34], [28, 58, 92], [44, 102, 165], [100, 168, 230], [206, 231, 255]],
  },
};
export const BAD: Record<Theme, Rgb> = { light: [214, 0, 132], dark: [255, 77, 184] };

const HALF = 255;
const system = matchMedia("(prefers-color-scheme: dark)");
const systemTheme = signal<Theme>(system.matches ? "dark" : "light");
system.addEventListener("change", (e) => (systemTheme.value = e.matches ? "dark" : "light"));

/** What the user chose, or null: as the system has it. */
export const chosen = signal<Theme | null>(
  ["light", "dark"].includes(forGood.getItem("theme") ?? "")
    ? (forGood.getItem("theme") as Theme) : null,
);

export const theme = (): Theme => chosen.value ?? systemTheme.value;

export function applyTheme(): void {
  document.documentElement.dataset.theme = theme();
}

export function toggleTheme(): void {
  chosen.value = theme() === "dark" ? "light" : "dark";
  forGood.setItem("theme", chosen.value);
  applyTheme();
}

const packed = ([r, g, b]: Rgb): number => (255 << 24) | (b << 16) | (g << 8) | r;

function ramp(stops: Rgb[], t: number): Rgb {
  const place = t * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(place));
  const part = place - i;
  return [0, 1, 2].map((c) =>
    Math.round(stops[i][c] * (1 - part) + stops[i + 1][c] * part)) as Rgb;
}

function table(of: Theme): Uint32Array {
  const found = new Uint32Array(2 * HALF + 1);
  for (let i = 0; i <= HALF; i++) {
    found[HALF + i] = packed(ramp(RAMPS[of].warm, i / HALF));
    found[HALF - i] = packed(ramp(RAMPS[of].cool, i / HALF));
  }
  return found;
}

const tables: Record<Theme, Uint32Array> = { light: table("light"), dark: table("dark") };

/** How numbers become colours: the size that is fully coloured, and whether by its square root,
 * which shows small numbers beside large ones. */
export interface Scale {
  top: number;
  root: boolean;
}

/** Where a number stands between −1 and 1. */
export function position(x: number, scale: Scale): number {
  const t = Math.max(-1, Math.min(1, x / (scale.top || 1)));
  return scale.root ? Math.sign(t) * Math.sqrt(Math.abs(t)) : t;
}

/** Paint numbers, row by row; bad: how many behind each are not finite, if that is known. */
export function paint(
  values: Float32Array, bad: Float32Array | null, width: number, height: number, scale: Scale,
): ImageData {
  const image = new ImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const colours = tables[theme()];
  const odd = packed(BAD[theme()]);
  for (let i = 0; i < values.length; i++) {
    const x = values[i];
    if (bad ? bad[i] > 0 : !Number.isFinite(x)) out[i] = odd;
    else out[i] = colours[HALF + Math.round(HALF * position(x, scale))];
  }
  return image;
}

export const css = (x: number, scale: Scale): string => {
  const i = HALF + Math.round(HALF * position(x, scale));
  const c = tables[theme()][i];
  return `rgb(${c & 255}, ${(c >> 8) & 255}, ${(c >> 16) & 255})`;
};

/** Whether text on this number's colour has to be light. */
export const darkBehind = (x: number, scale: Scale): boolean => {
  const strong = Math.abs(position(x, scale)) > 0.55;
  return theme() === "light" ? strong : !strong;
};

export const badColour = (): string => `rgb(${BAD[theme()].join(", ")})`;

export function largest(values: Float32Array): number {
  let top = 0;
  for (const x of values) if (Number.isFinite(x)) top = Math.max(top, Math.abs(x));
  return top;
}
