/** One event as one HTML file: numbers, pictures and text, opened anywhere, asking for nothing. */

import * as api from "./api";
import { largest, paint } from "./colour";
import { compareDocument, liveDocument } from "./exportruns";
import { stepOf, dedent } from "./maths";
import { route, settle } from "./route";
import { fail, recording, say, shown } from "./state";
import type { EventDetail, Maths, Operand, Planes, Source } from "./types";

const MOST = 40; // operands with a picture; AdamW has hundreds

export async function exportMoment(): Promise<void> {
  const { screen, r } = route.value;
  const e = shown.value;
  if (screen === "live") return save("backglass-runs", liveDocument());
  if (screen === "compare") return save("backglass-compare", compareDocument());
  if (!e || !r) return;
  try {
    const [page, source] = await Promise.all([
      api.maths(r, e.op).catch(() => null), api.source(r, e.kernel).catch(() => null)]);
    const name = `backglass-step-${recording.value!.manifest.step}-event-${e.k}`;
    save(name, await documentOf(r, e, page, source));
  } catch (error) {
    fail(error);
  }
}

function save(name: string, html: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([html], { type: "text/html" }));
  link.download = `${name}.html`;
  link.click();
  URL.revokeObjectURL(link.href);
  say(`saved as ${link.download}`);
}

export const escaped = (text: unknown): string =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")
    .replaceAll('"', "&quot;");

const STYLE = `
body{font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:40px auto;padding:0 24px;
color:#1d1c1a;background:#fbfaf7}h1{font-size:26px;margin:0}pre,code,td{font-family:ui-monospace,
monospace;font-size:12.5px}pre{overflow:auto}table{border-collapse:collapse;width:100%}td,th{
padding:5px 10px 5px 0;text-align:right;border-bottom:1px solid #e7e3db}td:nth-child(-n+4),
th:nth-child(-n+4){text-align:left}img{width:56px;height:56px;image-rendering:pixelated;
border-radius:4px}.muted{color:#6f6b64}i{color:#6f6b64}@media(prefers-color-scheme:dark){body{
color:#e9e7e2;background:#14151a}td,th{border-color:#2a2d35}}`;

async function documentOf(
  r: string, e: EventDetail, page: Maths | null, source: Source | null,
): Promise<string> {
  const m = recording.value!.manifest;
  const pictures = await Promise.all([...e.ins, ...e.outs].slice(0, MOST).map(
    async ({ version: v }) => [v.id, v.pictured ? await dataUrl(await api.picture(r, v.id)) : ""]));
  const images = new Map(pictures as [number, string][]);
  const lines = source?.lines.slice(e.first_line - 1, e.last_line)
    .map((tokens) => tokens.map(([, text]) => text).join("")).join("\n");
  return framed(e.text, `<p class="muted">backglass ${escaped(m.backglass)} · step ${m.step} · event ${e.k} of ${m.events} ·
${escaped(e.phase)} · ${escaped(m.device)} ${escaped(m.dtype)}</p>
<h1>${escaped(e.op)}</h1><pre>${escaped(e.text)}</pre>
<h2>reads</h2>${tableOf(e.ins, images)}<h2>makes</h2>${tableOf(e.outs, images)}
${page ? mathsOf(page) : ""}
${lines ? `<h2>${escaped(e.kernel)} ${e.first_line}–${e.last_line}</h2><pre>${escaped(lines)}</pre>` : ""}
`);
}

/** A page that asks for nothing, with the link to what it shows at its end. */
export const framed = (title: string, body: string): string =>
  `<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>${escaped(title)}</title><style>${STYLE}</style>
${body}<p class="muted">${escaped(settle().replace(/^.*#/, "#"))}</p></html>\n`;

const NAMES = ["min", "max", "mean", "std", "norm", "zeros", "nans", "infs"] as const;

function tableOf(all: Operand[], images: Map<number, string>): string {
  const rows = all.map(({ name, adds, version: v }) => {
    const image = images.get(v.id);
    const cells = NAMES.map((n) => `<td>${v.statistics[n]}</td>`).join("");
    return `<tr><td>${image ? `<img alt="" src="${image}">` : ""}</td><td>${escaped(name)}`
      + `${adds ? "+" : ""}</td><td>${escaped(v.tensor)} #${v.number}</td>`
      + `<td>${v.shape.join("×")} ${escaped(v.dtype)}</td>${cells}</tr>`;
  });
  const head = ["", "", "tensor", "shape", ...NAMES].map((n) => `<th>${n}</th>`).join("");
  return `<table><tr>${head}</tr>${rows.join("")}</table>`;
}

function mathsOf(page: Maths): string {
  const steps = page.derivation.map(stepOf).map(
    (s) => `<li value="${s.number}">${escaped(s.words)} <code>${escaped(s.formula)}</code></li>`);
  return `<h2>Maths</h2><p>${escaped(page.sentence)}</p><pre>${escaped(dedent(page.forward))}</pre>
<pre>${escaped(dedent(page.backward))}</pre><ol>${steps.join("")}</ol>`;
}

async function dataUrl(p: Planes): Promise<string> {
  const canvas = document.createElement("canvas");
  canvas.width = p.across;
  canvas.height = p.down;
  const scale = { top: largest(p.mean), root: true };
  canvas.getContext("2d")!.putImageData(paint(p.mean, p.bad, p.across, p.down, scale), 0, 0);
  return canvas.toDataURL("image/png");
}
