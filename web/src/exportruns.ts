/** The curves, or a comparison, as one HTML file: pictures and exact numbers. */

import { comparison, differing, editText, infoOf, isForkOf, labelOf, other, type Difference } from "./comparing";
import { verdictOf } from "./compare";
import { escaped, framed } from "./export";
import { curves, followed, type Curve } from "./live";
import { events, recording, runs } from "./state";

const row = (cells: unknown[], tag = "td"): string =>
  `<tr>${cells.map((x) => `<${tag}>${escaped(x ?? "")}</${tag}>`).join("")}</tr>`;

export function liveDocument(): string {
  const pictures = [...document.querySelectorAll<HTMLCanvasElement>("canvas[data-plot]")].map(
    (c) => `<h2>${escaped(c.dataset.plot)}</h2>
<img alt="" style="width:100%;height:auto;image-rendering:auto" src="${c.toDataURL()}">`);
  const tables = followed().map((id) => curves.get(id)).filter((c) => c !== undefined).map(tableOf);
  return framed("backglass: runs", `<h1>Runs</h1>${pictures.join("")}${tables.join("")}`);
}

function tableOf(c: Curve): string {
  const name = runs.value?.find((x) => x.id === c.id)?.name ?? c.id;
  const val = new Map(c.valStep.map((step, i) => [step, c.valLoss[i]]));
  const steps = [...new Set([...c.valStep, ...c.step])].sort((a, b) => a - b);
  const place = new Map(c.step.map((step, i) => [step, i]));
  const rows = steps.map((step) => {
    const i = place.get(step);
    const of = (x: number[]) => (i === undefined ? "" : x[i]);
    return row([step, of(c.loss), val.get(step), of(c.grad_norm), of(c.lr), of(c.tokens_per_s)]);
  });
  const head = row(["step", "loss", "val loss", "gradient norm", "learning rate", "tokens/s"], "th");
  return `<h2>${escaped(name)}</h2><table>${head}${rows.join("")}</table>`;
}

export function compareDocument(): string {
  const c = comparison.value;
  if (!c) return framed("backglass: compare", "<h1>Nothing is compared</h1>");
  const names = [c.a, c.b].map((id) => (infoOf(id) ? labelOf(infoOf(id)!) : id));
  const fork = isForkOf(c.b, c.a) ? infoOf(c.b)!.fork! : null;
  const said = verdictOf(c);
  const [a, b] = [recording.value?.manifest, other.value?.manifest];
  const head = row(["event", "", "tensor", "‖A − B‖/‖A‖", "ulp", "most at", "A", "B"], "th");
  const lines = (k: number | null, found: Difference[]) => found.map((d) => row([
    k ?? "before", k === null ? "" : events.value[k]?.text, d.tensor, d.error, d.ulp,
    d.at?.join(","), d.values?.[0] ?? d.norms[0], d.values?.[1] ?? d.norms[1]])).join("");
  const rows = differing.value.map((k) => lines(k, c.found[k])).join("");
  return framed("backglass: compare", `<h1>${escaped(fork ? `What if ${editText(fork)}` : "Compare")}</h1>
<p>A: ${escaped(names[0])}<br>B: ${escaped(names[1])}</p>
<p><b>${escaped(said.text)}</b> ${escaped(said.more)}</p>
<p>${differing.value.length} of ${events.value.length} events differ.</p>
<table>${row(["", "A", "B"], "th")}${row(["loss", a?.loss, b?.loss])}
${row(["gradient norm", a?.grad_norm, b?.grad_norm])}</table>
<h2>What differs</h2><table>${head}${lines(null, c.before)}${rows}</table>`);
}
