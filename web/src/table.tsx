/** Exact numbers around the cursor, for those who read tables better than pictures. */

import * as api from "./api";
import { axes, letter, ravel, unravel } from "./format";
import type { Subject } from "./heatmap";
import { useFetched } from "./maths";
import { navigate } from "./route";
import type { VersionDetail } from "./types";

const ROWS = 16;
const COLUMNS = 8;

export function Table({ r, detail, s, cursor }: {
  r: string; detail: VersionDetail; s: Subject; cursor: number[];
}) {
  const cell = ravel(detail.shape, cursor);
  const row = start(cell.row, s.from, s.to, ROWS);
  const column = start(cell.column, 0, s.columns, COLUMNS);
  const height = Math.min(ROWS, s.to - row);
  const width = Math.min(COLUMNS, s.columns - column);
  const values = useFetched(
    (signal) => api.cells(r, detail.id, row, column, height, width, signal),
    `${r} ${detail.id} ${row} ${column} ${height} ${width}`);
  const put = (i: number, j: number) => navigate({ ix: unravel(detail.shape, i, j) });
  const names = axes(detail.dims, detail.shape).map(letter);
  const move = (rows: number, columns: number) => put(
    Math.max(s.from, Math.min(s.to - 1, cell.row + rows)),
    Math.max(0, Math.min(s.columns - 1, cell.column + columns)));
  return (
    <div class="table">
      <div class="row" role="group" aria-label="Move the table">
        <button onClick={() => move(-ROWS, 0)}>↑ {ROWS} rows</button>
        <button onClick={() => move(ROWS, 0)}>↓ {ROWS} rows</button>
        <button onClick={() => move(0, -COLUMNS)}>← {COLUMNS} columns</button>
        <button onClick={() => move(0, COLUMNS)}>→ {COLUMNS} columns</button>
      </div>
      <table>
        <caption class="unseen">{detail.tensor}, exact numbers</caption>
        <thead>
          <tr>
            <th scope="col">{names.slice(0, -1).join(",") || "–"}</th>
            {Array.from({ length: width }, (_, j) => (
              <th scope="col" class="num" key={j}>{names[names.length - 1] ?? "i"} {column + j}</th>
            ))}
          </tr>
        </thead>
        <tbody>
          {values?.map((line, i) => (
            <tr key={row + i}>
              <th scope="row" class="num">
                {unravel(detail.shape, row + i, 0).slice(0, -1).join(",") || "0"}
              </th>
              {line.map((text, j) => (
                <td class={`num ${row + i === cell.row && column + j === cell.column ? "now" : ""}`}
                  onClick={() => put(row + i, column + j)} key={j}>{text}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The window's first row: steps of whole windows, so that it stands still while the cursor moves. */
const start = (at: number, from: number, to: number, span: number): number =>
  Math.max(from, Math.min(to - span, from + Math.floor((at - from) / span) * span));
