/** Two recordings: where they part, how far, and what became of a what-if. */

import {
  comparison, differing, discard, editText, errorOf, infoOf, isForkOf, labelOf, listed, lookAt,
  openCompare, other, ulpOf, undo, type Comparison, type Difference, type Listed,
} from "./comparing";
import { gap, short } from "./format";
import { navigate, route } from "./route";
import { at, events, recording } from "./state";
import type { Event } from "./types";

const SMALLEST = -9; // decimal exponent of an error whose bar is the shortest

export function Compare() {
  const { r, vs } = route.value;
  const c = comparison.value;
  const now = c && c.a === r && c.b === vs ? c : null;
  return (
    <main class="compare">
      <Pickers />
      {r && vs && now ? <Body c={now} /> : <Choose />}
    </main>
  );
}

function Choose() {
  return (
    <section class="empty-state">
      <h2>{listed.value.length < 2 ? "There is nothing to compare yet" : "Choose two recordings"}</h2>
      <p class="muted">
        Of the same step of two runs it says which operation is the first to differ, and by how much.
        In the inspector, <kbd>e</kbd> changes a number and shows what follows from it here.
      </p>
      {listed.value.length < 2 && <pre>backglass trace RUN --step N --level 3</pre>}
    </section>
  );
}

function Pickers() {
  const { r, vs } = route.value;
  return (
    <div class="toolbar">
      <Pick name="A" value={r} choose={(id) => openCompare(id, vs)} />
      <button class="icon" title="Exchange A and B" aria-label="Exchange A and B"
        onClick={() => openCompare(vs, r)}>⇄</button>
      <Pick name="B" value={vs} choose={(id) => openCompare(r, id)} />
      <span class="space" />
      <button aria-pressed={all()} onClick={toggleAll}
        title="Events that are the same too">unchanged too</button>
    </div>
  );
}

const all = () => route.value.flags.includes("all");
const toggleAll = () => navigate({ flags: all() ? [] : ["all"] });

function Pick({ name, value, choose }: {
  name: string; value: string | null; choose: (id: string) => void;
}) {
  return (
    <label class={`pick ${name.toLowerCase()}`}>
      <b>{name}</b>
      <select aria-label={`Recording ${name}`} value={value ?? ""}
        onChange={(e) => choose(e.currentTarget.value)}>
        <option value="" disabled>choose</option>
        {listed.value.map((x) => <option value={x.id} key={x.id}>{labelOf(x)}</option>)}
      </select>
    </label>
  );
}

function Body({ c }: { c: Comparison }) {
  const fork = isForkOf(c.b, c.a) ? infoOf(c.b)! : null;
  return (
    <>
      <Verdict c={c} fork={fork} />
      <Blast c={c} fork={fork} />
      <List c={c} fork={fork} />
      <Chosen c={c} fork={fork} />
    </>
  );
}

// ------------------------------------------------------------ verdict

interface Said {
  mood: string;
  text: string;
  more: string;
}

export function verdictOf(c: Comparison): Said {
  const found = differing.value;
  const first = found[0] ?? null;
  if (c.state === "failed") return { mood: "warn", text: "cannot be compared", more: c.why };
  if (c.unlike.length) return apart(c, found);
  if (c.before.length || first !== null) {
    const e = first === null ? null : events.value[first];
    const text = e ? `first divergence: event ${e.k}` : "different before the first event";
    return { mood: "bad", text, more: e?.text ?? c.before.map((d) => d.tensor).join(", ") };
  }
  if (c.state === "running") return { mood: "busy", text: "comparing …", more: "" };
  const cut = c.cut === null ? "" : ` in the ${c.cut} events that both have`;
  return {
    mood: "good", text: `no divergence${cut}`,
    more: `${c.compared.toLocaleString("en-US")} tensors have the same bits`,
  };
}

/** Two devices or kernels round differently: how far apart, never equal. */
function apart(c: Comparison, found: number[]): Said {
  const worst = found.reduce<[number, number]>(
    (top, k) => (errorOf(c.found[k])! > top[0] ? [errorOf(c.found[k])!, k] : top), [0, -1]);
  const size = worst[1] < 0 ? "no difference seen"
    : `largest error ${short(worst[0])} at event ${worst[1]}`;
  return { mood: "note", text: `not the same program · ${size}`, more: c.unlike.join("; ") };
}

function Verdict({ c, fork }: { c: Comparison; fork: Listed | null }) {
  const { mood, text, more } = verdictOf(c);
  return (
    <section class="verdict" aria-label="Verdict">
      {fork ? <Trial c={c} fork={fork} /> : (
        <p class="said">
          <span class={`badge ${mood}`} role="status" data-testid="verdict">{text}</span>
          <span class="mono more" title={more}>{more}</span>
        </p>
      )}
      <Losses />
    </section>
  );
}

function Trial({ c, fork }: { c: Comparison; fork: Listed }) {
  const changed = differing.value.length;
  const same = c.found.filter((d) => d && !d.length).length;
  return (
    <>
      <h1>What if <span class="mono">{editText(fork.fork!)}</span></h1>
      <p class="said">
        <span data-testid="radius" role="status">
          <b class="num">{changed}</b> of <b class="num">{events.value.length}</b> events changed,{" "}
          <b class="num">{same}</b> unchanged
        </span>
        <span class="space" />
        <button onClick={() => void undo(c.b)} title="Delete it, and back to the cell">Undo</button>
        <button onClick={() => navigate({ screen: "", r: c.b, vs: c.a, e: at.value })}
          title="Step through what was computed with the edit">Step through it</button>
      </p>
    </>
  );
}

function Losses() {
  const a = recording.value?.manifest;
  const b = other.value?.manifest;
  const rows = [
    ["loss", a?.loss, b?.loss], ["‖gradient‖", a?.grad_norm, b?.grad_norm],
    ...(a?.own && b?.own ? [["loss of the run's own program", a.own.loss, b.own.loss]] : []),
  ] as [string, number | string | undefined, number | string | undefined][];
  return (
    <table class="losses num">
      <thead><tr><th /><th class="a">A</th><th class="b">B</th><th>B − A</th></tr></thead>
      <tbody>
        {rows.map(([name, x, y]) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            <td data-testid={`${name}-a`}>{x === undefined ? "–" : String(x)}</td>
            <td data-testid={`${name}-b`}>{y === undefined ? "–" : String(y)}</td>
            <td title={x !== undefined && y !== undefined ? `relative: ${gap(y, x)}` : ""}>
              {typeof x === "number" && typeof y === "number" ? short(y - x) : "–"}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

// ------------------------------------------------------------ events

type State = "edited" | "changed" | "unchanged" | "missing" | "pending";

function stateOf(c: Comparison, k: number, fork: Listed | null): State {
  if (fork?.fork!.event === k) return "edited";
  const found = c.found[k];
  if (!found) return c.state === "running" ? "pending" : "missing";
  return found.length ? "changed" : "unchanged";
}

/** From 0, for the smallest errors and smaller, to 1. */
function size(error: number | null): number {
  if (error === null) return 0.5;
  if (error === 0) return 0;
  const place = (Math.log10(error) - SMALLEST) / -SMALLEST;
  return Math.max(0.06, Math.min(1, place));
}

/** Every event, in order: how far the change reaches. */
function Blast({ c, fork }: { c: Comparison; fork: Listed | null }) {
  const now = at.value;
  return (
    <div class="blast" aria-hidden="true">
      {events.value.map((e) => {
        const state = stateOf(c, e.k, fork);
        const tall = state === "unchanged" || state === "pending" ? 0 : size(errorOf(c.found[e.k]));
        return (
          <span key={e.k} class={`${e.phase} ${state} ${e.k === now ? "now" : ""}`}
            onClick={() => navigate({ e: e.k })} title={`${e.k} ${e.text}`}>
            <i style={{ height: `${100 * tall}%` }} />
          </span>
        );
      })}
    </div>
  );
}

function List({ c, fork }: { c: Comparison; fork: Listed | null }) {
  const shown = events.value.filter((e) => all() || stateOf(c, e.k, fork) === "edited"
    || c.found[e.k]?.length);
  return (
    <section class="diverging" aria-label="Events">
      {c.before.length > 0 && (
        <div class="before">
          <h3>{fork ? "The edit" : "Different before the step, or given to it"}</h3>
          {c.before.map((d) => <Diff d={d} key={d.tensor} />)}
        </div>
      )}
      <ul role="listbox" aria-label="Events that differ" tabIndex={0}>
        {shown.map((e) => <Row e={e} c={c} state={stateOf(c, e.k, fork)} key={e.k} />)}
      </ul>
      {!shown.length && <p class="muted none">{c.state === "running" ? "comparing …"
        : "No event differs."}</p>}
    </section>
  );
}

function Row({ e, c, state }: { e: Event; c: Comparison; state: State }) {
  const found = c.found[e.k] ?? [];
  const error = errorOf(found);
  return (
    <li role="option" aria-selected={e.k === at.value} data-k={e.k} data-state={state}
      class={`${e.phase} ${state}`} onClick={() => navigate({ e: e.k })}>
      <span class="num k">{e.k}</span>
      <span class="mono">{e.text}</span>
      <span class="state">{state === "changed" ? "" : state}</span>
      <span class="num error">{!found.length ? "" : error === null ? "?" : short(error)}</span>
      <span class="gauge"><i style={{ transform: `scaleX(${size(error)})` }} /></span>
    </li>
  );
}

function Chosen({ c, fork }: { c: Comparison; fork: Listed | null }) {
  const e = events.value[at.value];
  const found = c.found[at.value] ?? [];
  if (!e) return <section class="chosen" />;
  const state = stateOf(c, e.k, fork);
  return (
    <section class={`chosen ${e.phase}`} aria-label="Chosen event" data-shown={e.k}>
      <h2>{e.op} <span class="num muted">{e.k}</span></h2>
      <p class="mono call">{e.text}</p>
      {found.map((d) => <Diff d={d} key={d.tensor} />)}
      {!found.length && <p class="muted">{state === "unchanged"
        ? "Everything that it makes has the same bits." : state === "pending" ? "Not compared yet."
          : "Not in both recordings."}</p>}
      {found.length > 0 && <p class="muted hint">
        largest ulp {ulpOf(found)?.toLocaleString("en-US") ?? "?"} · <kbd>d</kbd> shows where
      </p>}
    </section>
  );
}

/** A tensor in both, side by side. */
function Diff({ d }: { d: Difference }) {
  const stored = d.error !== null;
  return (
    <button class="diff" onClick={() => lookAt(d)} disabled={!stored} data-tensor={d.tensor}
      title={stored ? "The difference as a picture" : "Its values are not stored: --level 3"}>
      <b class="mono">{d.tensor}</b>
      <span class="pair num">
        <span><i>‖A − B‖/‖A‖</i>{short(d.error ?? undefined)}</span>
        <span><i>ulp</i>{d.ulp === null ? "–" : d.ulp.toLocaleString("en-US")}</span>
        <span><i>most at</i>{d.at ? d.at.join(",") : "–"}</span>
        <span><i class="a">A</i>{d.values ? short(d.values[0]) : short(d.norms[0])}</span>
        <span><i class="b">B</i>{d.values ? short(d.values[1]) : short(d.norms[1])}</span>
        <span><i>{stored ? "|A − B|" : "norms"}</i>{short(d.largest ?? undefined)}</span>
      </span>
    </button>
  );
}

export function Forks() {
  const found = listed.value.filter((x) => x.fork);
  if (!found.length) return null;
  return (
    <section class="run forks">
      <h2>What-ifs</h2>
      <ul>
        {found.map((x) => (
          <li key={x.id} class="row">
            <button class="choice" onClick={() => openFork(x)}>
              <b class="mono">{editText(x.fork!)}</b>
              <span>{x.run} · step {x.step}</span>
            </button>
            <button onClick={() => void discard(x.id)} aria-label={`Delete ${editText(x.fork!)}`}>
              Delete</button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function openFork(x: Listed): void {
  const of = listed.value.find((y) => y.run === x.run && y.name === x.fork!.of);
  openCompare(of?.id ?? x.id, x.id);
}
