/** The gradient bench: an op, its derivation, and the proof of it on the recorded numbers. */

import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

import * as api from "./api";
import {
  checking, checkModel, checkNow, closeBench, cellOf, look, parameter, resultOf, running, stopCheck,
  troubleOf, verdict, type Running, type What,
} from "./bench";
import { PHASES } from "./card";
import { CellFields } from "./cellfields";
import { axes, count, letter, short } from "./format";
import { Maths, useFetched } from "./maths";
import { route } from "./route";
import { at, current, inspect } from "./state";
import { StepCurve } from "./stepcurve";
import { UpdatePanel } from "./updateview";
import type { BenchOperand, BenchPlan, Judged, Real } from "./types";

export function Bench() {
  const r = route.value.r!;
  const key = `${r} ${at.value} ${parameter.value ?? ""}`;
  const [why, setWhy] = useState("");
  const got = useFetched<{ key: string; plan: BenchPlan } | null>(async (signal) => {
    setWhy("");
    const plan = await api.benchPlan(r, at.value, parameter.value, signal).catch((e) => {
      if (!api.aborted(e)) setWhy((e as Error).message);
      throw e;
    });
    return { key, plan };
  }, key);
  const plan = got?.plan.k === at.value ? got.plan : null;
  const e = current.value!;
  return (
    <section class={`bench ${e.phase}`} aria-label="Gradient bench" data-shown={plan?.k}
      aria-busy={checking.value}>
      <Bar />
      <div class="checks" tabIndex={0} role="region" aria-label="Checks">
        {why && <p class="trouble" role="alert">{why}</p>}
        {plan && <Checks plan={plan} />}
      </div>
      <div class="closely" tabIndex={0} role="region" aria-label="One cell, closely">
        {plan && (plan.parameters.length ? <UpdatePanel plan={plan} /> : <Closely plan={plan} />)}
      </div>
      <Maths />
    </section>
  );
}

function Bar() {
  const e = current.value!;
  const good = verdict();
  const words = good === null ? "not checked" : good ? "holds" : "does not hold";
  return (
    <div class="toolbar">
      <h1>{e.op}</h1>
      <span class={`phase ${e.phase}`}>{PHASES[e.phase]}</span>
      <span class={`badge outcome ${good === null ? "" : good ? "good" : "bad"}`} role="status"
        data-testid="verdict">{words}</span>
      <span class="mono muted call" title={e.text}>{e.text}</span>
      <span class="space" />
      <Progress now={running.value} />
      <button class="solid" onClick={() => void checkNow()} title="Check this event (g)"
        data-testid="check">Check now <kbd>g</kbd></button>
      <button class="icon" onClick={closeBench} title="Back to the event (Esc)"
        aria-label="Back to the event">✕</button>
    </div>
  );
}

const DOING: Record<What, string> = {
  maths: "differences", kernel: "kernel", steps: "step sizes", model: "whole model",
};

/** How far the running check is, and about how long it still takes. */
function Progress({ now }: { now: Running | null }) {
  const part = now?.total ? now.done / now.total : 0;
  const spent = now ? (performance.now() - now.since) / 1000 : 0;
  const left = part > 0 && spent > 1 ? ` · ${Math.ceil((spent / part) * (1 - part))} s left` : "";
  return (
    <span class={`running ${now ? "" : "idle"}`} aria-hidden={!now} data-testid="running">
      <span class="track"><span style={{ transform: `scaleX(${part})` }} /></span>
      <span class="num words">{now ? `${DOING[now.what]} ${Math.floor(100 * part)}%${left}` : ""}</span>
      <button disabled={!now} onClick={stopCheck} title="Stop (Esc)">Cancel</button>
    </span>
  );
}

// ------------------------------------------------------------ the checks

function Checks({ plan }: { plan: BenchPlan }) {
  return (
    <>
      {!plan.stored && (
        <p class="aside">
          Recorded with statistics only. A check does the step again first, and believes its numbers
          only if their hashes are the recorded ones.
        </p>
      )}
      <MathsPanel plan={plan} />
      <KernelPanel plan={plan} />
      <ModelPanel />
    </>
  );
}

function MathsPanel({ plan }: { plan: BenchPlan }) {
  const result = resultOf("maths");
  if (!plan.maths.length) {
    return (
      <Panel title="The maths" what="maths">
        <p class="muted">Nothing is differentiated here: this line has no gradient to check.</p>
      </Panel>
    );
  }
  const row = result?.rows[0];
  return (
    <Panel title="The float64 maths against central differences" what="maths">
      <p class="muted">
        φ(x) = ⟨g, f(x)⟩, <Upstream plan={plan} />{" "}
        {row ? `${count(row.cells)} random cells of each operand` : "64 random cells of each operand"}
        {" "}and one random direction through all.
      </p>
      {plan.maths.map((m) => {
        const own = result?.rows.find((x) => x.name === m.name);
        const worst = own?.worst;
        return (
          <Result key={m.name} name={m.name} operand={m.x} judged={own}>
            {worst && <Cell operand={m.recorded ?? m.x} index={worst.index} />}
            {worst && <Pair a="by differences" x={worst.numeric} b="by hand" y={worst.by_hand} />}
          </Result>
        );
      })}
    </Panel>
  );
}

function Upstream({ plan }: { plan: BenchPlan }) {
  return (
    <>
      {plan.upstream.map((u) => (
        <span key={u.name}>
          g = {u.recorded ? <>the recorded <b class="mono">{u.recorded.tensor}</b>;</>
            : <>random numbers (seed {plan.k}), as {u.name} {u.why_random};</>}
        </span>
      ))}
    </>
  );
}

function KernelPanel({ plan }: { plan: BenchPlan }) {
  const result = resultOf("kernel");
  const where = result && !result.ran ? "as recorded" : `on ${result?.ran ?? plan.device}`;
  return (
    <Panel title={`The kernel in ${plan.dtype} against the float64 maths`} what="kernel">
      <p class="muted">
        {where[0].toUpperCase() + where.slice(1)}, on the recorded numbers. It may err twice as much
        as a naive evaluation in {plan.dtype}, or 4 units in the last place.
        {result?.why_not_run && ` Not run again: ${result.why_not_run}`}
      </p>
      {plan.kernel.map((o) => {
        const own = result?.rows.find((x) => x.name === o.name);
        return (
          <Result key={o.name} name={o.name} operand={o} judged={own}>
            {own && <Cell operand={o} index={own.worst.index} />}
            {own && <Pair a={plan.dtype} x={own.worst.found} b="true" y={own.worst.true} />}
            {own && (
              <span class="bits" title="Compared with what was recorded">
                {own.same ? "same bits" : "other bits"}
              </span>
            )}
          </Result>
        );
      })}
    </Panel>
  );
}

function ModelPanel() {
  const result = resultOf("model");
  return (
    <Panel title="The whole model along random directions" what="model">
      <p class="muted">
        (L(θ + hv) − L(θ − hv))/2h against ⟨grad, v⟩ in float64, on the tokens of this step.{" "}
        {result && <>Loss {short(result.loss)}, {count(result.parameters)} parameters,
          {" "}{count(result.tokens)} tokens.</>}
      </p>
      {!result && <button onClick={checkModel} data-testid="check-model">Check the whole model</button>}
      {result?.rows.map((row) => (
        <Result key={row.name} name={row.name || "all"} judged={row}>
          <Pair a="by differences" x={row.numeric} b="⟨grad, v⟩" y={row.by_hand} />
        </Result>
      ))}
    </Panel>
  );
}

function Panel({ title, what, children }: {
  title: string; what: What; children: ComponentChildren;
}) {
  const why = troubleOf(what);
  return (
    <div class="panel" data-check={what} aria-busy={running.value?.what === what}>
      <h2>{title}</h2>
      {why && <p class="trouble" role="alert">{why}</p>}
      {children}
    </div>
  );
}

const LOWEST = -16; // of the scale: 1e-16 to 1

const place = (x: Real): number => {
  const n = typeof x === "number" ? x : 1;
  return 100 * Math.min(1, Math.max(0, 1 - Math.log10(Math.max(n, 1e-300)) / LOWEST));
};

/** A row: how large the error is beside its bound, on a scale of powers of ten. */
function Result({ name, operand, judged, children }: {
  name: string; operand?: BenchOperand; judged?: Judged; children?: ComponentChildren;
}) {
  return (
    <div class={`result ${judged ? (judged.ok ? "ok" : "wrong") : ""}`} data-row={name}
      data-ok={judged?.ok}>
      <b class="spec">{name}</b>
      <span class="mono name muted">{operand?.tensor}</span>
      <span class="scale" aria-hidden="true">
        {judged && <i class="limit" style={{ left: `${place(judged.bound)}%` }} />}
        {judged && <i class="dot" style={{ left: `${place(judged.error)}%` }} />}
      </span>
      <span class="num error" data-error={judged?.error}>{judged ? tiny(judged.error) : "–"}</span>
      <span class="num muted bound" data-bound={judged?.bound}>
        {judged ? `≤ ${tiny(judged.bound)}` : "\u00a0"}</span>
      <b class="sign" aria-label={judged ? (judged.ok ? "passes" : "fails") : "not checked"}>
        {judged ? (judged.ok ? "✓" : "✗") : "\u00a0"}</b>
      <span class="detail">{children}</span>
    </div>
  );
}

const tiny = (x: Real): string => (typeof x === "string" ? x
  : x === 0 ? "0" : x.toExponential(1).replaceAll("-", "−"));

function Cell({ operand, index }: { operand: BenchOperand; index: number[] }) {
  const names = axes(operand.dims, operand.shape);
  const words = index.map((n, i) => `${letter(names[i])} ${n}`).join(" ");
  return (
    <button class="chip num" onClick={() => inspect(operand.version, index)} data-cell={index.join()}
      title={`Look at ${operand.tensor} #${operand.number} there`}>{words || "scalar"}</button>
  );
}

function Pair({ a, x, b, y }: { a: string; x: Real; b: string; y: Real }) {
  return (
    <span class="both num">
      <i>{a}</i><output data-value={a}>{String(x)}</output>
      <i>{b}</i><output data-value={b}>{String(y)}</output>
    </span>
  );
}

// ------------------------------------------------------------ one cell

const worstOf = (of: string): number[] | null =>
  resultOf("maths")?.rows.find((row) => row.of === of)?.worst?.index ?? null;

function Closely({ plan }: { plan: BenchPlan }) {
  const cell = cellOf(plan);
  if (!cell) return <p class="muted empty">Nothing is differentiated here.</p>;
  const { operand, index } = cell;
  const steps = resultOf("steps");
  const worst = worstOf(operand.name);
  const mine = steps?.of === operand.name && steps.index.join() === index.join() ? steps : null;
  const go = (name: string, ix: number[]) => {
    const of = plan.maths.find((m) => m.of === name)!.x;
    void look(of, ix.length === of.shape.length ? ix : worstOf(name) ?? of.shape.map(() => 0));
  };
  return (
    <div class="panel" data-check="steps">
      <h2>Error against step size</h2>
      <StepCurve steps={mine}>
        <CellFields choices={plan.maths.map((m) => m.of)} chosen={operand.name} operand={operand}
          index={index} choose={go}>
          <button disabled={!worst} onClick={() => go(operand.name, worst!)}>worst</button>
        </CellFields>
        {troubleOf("steps") && <p class="trouble" role="alert">{troubleOf("steps")}</p>}
      </StepCurve>
    </div>
  );
}
