/** One weight through AdamW: the formula, with the numbers of this step put into it. */

import * as api from "./api";
import { parameter, resultOf } from "./bench";
import { CellFields } from "./cellfields";
import { axes, letter, ravel } from "./format";
import { useFetched } from "./maths";
import { navigate, route } from "./route";
import { inspect } from "./state";
import type { BenchPlan, Update } from "./types";

export function UpdatePanel({ plan }: { plan: BenchPlan }) {
  const r = route.value.r!;
  const name = parameter.value ?? plan.parameters[0];
  const operand = plan.kernel.find((o) => o.name === "p")!;
  const { ix } = route.value;
  const fits = ix?.length === operand.shape.length && ix.every((n, i) => n < operand.shape[i]);
  const index = fits ? ix! : operand.shape.map(() => 0);
  const { row, column } = ravel(operand.shape, index);
  const checked = resultOf("kernel") !== null; // which may have done the step again
  const key = `${r} ${plan.k} ${operand.tensor} ${row} ${column} ${checked}`;
  const got = useFetched<{ found: Update | null; why: string }>((signal) =>
    api.update(r, operand.tensor, row, column, signal).then(
      (found) => ({ found, why: "" }),
      (error) => {
        if (api.aborted(error)) throw error;
        return { found: null, why: (error as Error).message };
      }), key);
  const choose = (tensor: string, at: number[]) => navigate({ o: tensor, ix: at.length ? at : null });
  return (
    <div class="panel update" data-check="update">
      <h2>One weight through AdamW</h2>
      <CellFields choices={plan.parameters} chosen={name} operand={operand} index={index}
        choose={choose} />
      {got?.why && <p class="trouble" role="alert">{got.why}</p>}
      {got?.found && <Formula found={got.found} names={axes(operand.dims, operand.shape)} />}
    </div>
  );
}

const ORDER = [
  "p", "master", "dp", "m", "v", "lr", "β₁", "β₂", "ε", "λ", "1/(1 − β₁ᵗ)", "1/(1 − β₂ᵗ)",
];

function Formula({ found, names }: { found: Update; names: string[] }) {
  const { clip, symbols } = found;
  const where = found.index.map((n, i) => `${letter(names[i])} ${n}`).join(" ");
  return (
    <>
      <p class="muted" data-testid="update-of" data-cell={found.index.join()}>
        <b class="mono">{found.tensor}</b> {where}, update t = <b data-symbol="t">{found.t}</b>.{" "}
        {found.decays ? "" : "Biases and layernorms do not decay: λ counts as 0."}
      </p>
      <dl class="symbols">
        {ORDER.filter((name) => name in symbols).map((name) => (
          <div key={name}>
            <dt>{name}</dt><dd class="num" data-symbol={name}>{symbols[name]}</dd>
          </div>
        ))}
      </dl>
      <div class="lines-of">
        <Line name="clip" formula="min(1, max_norm/‖dp‖)"
          numbers={clip.norm === null ? "the norm was not stored"
            : clip.max_norm === "0.0" ? "max_norm = 0: no clipping"
              : `min(1, ${clip.max_norm}/${clip.norm})`} value={clip.factor} />
        {found.lines.map((line) => <Line key={line.name} {...line} />)}
      </div>
      <Recorded found={found} />
    </>
  );
}

function Line({ name, formula, numbers, value }: {
  name: string; formula: string; numbers: string; value: string;
}) {
  return (
    <div class="put-in" data-line={name}>
      <b class="mono">{name}</b>
      <span class="mono">= {formula}</span>
      <span class="mono muted">= {numbers}</span>
      <output class="num" data-value={name}>{value}</output>
    </div>
  );
}

function Recorded({ found }: { found: Update }) {
  return (
    <table class="recorded">
      <thead><tr><th>after</th><th>by hand, float32</th><th>recorded</th><th>apart</th></tr></thead>
      <tbody>
        {found.results.map((x) => (
          <tr key={x.name} data-result={x.name} class={x.ulps !== null && x.ulps <= 1 ? "" : "wrong"}>
            <th><button class="chip" onClick={() => inspect(x.version, found.index)}>{x.name}′</button></th>
            <td class="num" data-value="by hand">{x.by_hand}</td>
            <td class="num" data-value="recorded">{x.recorded}</td>
            <td class="num" data-value="ulps">{x.ulps === null ? "not finite" : `${x.ulps} ulp`}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
