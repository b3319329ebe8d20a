/** How large things are along the layers: the residual stream, its gradient, weights and what the
 * update changes of them.  A table, so that it can be read aloud; the bars are beside the numbers. */

import * as api from "./api";
import { short } from "./format";
import { useFetched } from "./maths";
import { route } from "./route";
import { current, events, go, groups, toggleScreen } from "./state";
import type { Flow, FlowPart } from "./types";

type Figure = Exclude<keyof FlowPart, "name">;

const COLUMNS: [Figure, string, string][] = [
  ["x", "‖x‖", "the residual stream after it"],
  ["growth", "growth", "‖x‖ over that of the part before"],
  ["dx", "‖dx‖", "the gradient of the loss there"],
  ["w", "‖W‖", "its parameters before the step"],
  ["dw", "‖dW‖", "their gradient, before clipping"],
  ["update", "‖ΔW‖/‖W‖", "what the step changes of them"],
];

export function FlowScreen() {
  const r = route.value.r!;
  const run = current.value?.phase === "update" ? 0 : current.value?.run ?? 0;
  const flow = useFetched<Flow>((signal) => api.flow(r, run, signal), `${r} ${run}`);
  if (!flow) return <section class="screen" aria-busy="true" />;
  const largest = Object.fromEntries(COLUMNS.map(([c]) => [c, Math.max(...flow.parts.map(
    (p) => (Number.isFinite(p[c]) ? Number(p[c]) : 0)))]));
  return (
    <section class="screen flow" aria-label="Flow">
      <h1>Flow through the layers</h1>
      <p class="muted">
        Norms of micro-batch {run}, from the statistics that every recording has. Healthy: ‖x‖ grows
        slowly, ‖dx‖ neither dies nor explodes, the update is about a thousandth of the weights.
      </p>
      <table>
        <thead>
          <tr>
            <th scope="col">part</th>
            {COLUMNS.map(([c, name, about]) => <th scope="col" key={c}>{name}<small>{about}</small></th>)}
          </tr>
        </thead>
        <tbody>
          {flow.parts.map((p) => (
            <tr key={p.name} data-part={p.name}>
              <th scope="row"><button class="plain" onClick={() => visit(p.name)}
                title="Its first event">{p.name}</button></th>
              {COLUMNS.map(([c]) => <Bar key={c} figure={c} x={p[c]} largest={largest[c]} />)}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}

function Bar({ figure, x, largest }: { figure: Figure; x: number | null; largest: number }) {
  const finite = x === null || Number.isFinite(x);
  const part = largest > 0 && finite ? Math.min(1, Number(x) / largest) : 0;
  return (
    <td class={finite ? "" : "bad"} data-figure={figure} title={x === null ? "not recorded" : `${x}`}>
      <span class={`bar-${figure}`} style={{ transform: `scaleX(${part})` }} />
      <i class="num">{short(x)}</i>
    </td>
  );
}

function visit(part: string): void {
  const k = groups.value.indexOf(part);
  toggleScreen("flow");
  if (events.value[k]) go(k);
}
