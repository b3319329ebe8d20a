/** Which operand and which of its cells is looked at closely. */

import type { ComponentChildren } from "preact";

import { axes, letter } from "./format";
import type { BenchOperand } from "./types";

export function CellFields({ choices, chosen, operand, index, choose, children }: {
  choices: string[]; chosen: string; operand: BenchOperand; index: number[];
  choose: (name: string, index: number[]) => void; children?: ComponentChildren;
}) {
  const names = axes(operand.dims, operand.shape);
  const set = (axis: number, text: string) => {
    const n = Math.max(0, Math.min(operand.shape[axis] - 1, Math.floor(Number(text))));
    if (text !== "" && Number.isFinite(n)) {
      choose(chosen, index.map((old, i) => (i === axis ? n : old)));
    }
  };
  const random = () => choose(chosen, operand.shape.map((n) => Math.floor(Math.random() * n)));
  return (
    <div class="cell-fields" data-testid="cell-fields">
      <select aria-label="Operand" value={chosen}
        onChange={(e) => choose(e.currentTarget.value, [])}>
        {choices.map((name) => <option value={name} key={name}>{name}</option>)}
      </select>
      {index.map((n, i) => (
        <label key={i}>
          <i>{letter(names[i])}</i>
          <input type="number" class="num" min={0} max={operand.shape[i] - 1} value={n}
            title={`0 to ${operand.shape[i] - 1}`}
            onChange={(e) => set(i, e.currentTarget.value)} />
        </label>
      ))}
      <button onClick={random}>random</button>
      {children}
    </div>
  );
}
