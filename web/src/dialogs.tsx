/** The keys, and the breakpoint on a condition. */

import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { addCondition } from "./breakpoints";
import { ACTIONS, keysOn, toggleKeys } from "./keys";
import { overlay } from "./state";

const close = () => (overlay.value = "none");

/** A box over the page that keeps the focus until it is closed, and gives it back. */
export function Dialog({ title, children, kind }: {
  title: string; children: ComponentChildren; kind: string;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    dialog.current!.showModal();
    return () => before?.focus();
  }, []);
  return (
    <dialog ref={dialog} class={kind} aria-label={title} onCancel={close} onClose={close}
      onClick={(e) => e.target === dialog.current && close()}>
      {children}
    </dialog>
  );
}

const SIGNS: Record<string, string> = {
  ArrowRight: "→", ArrowLeft: "←", ArrowUp: "↑", ArrowDown: "↓", " ": "Space",
};

export const keyText = (key: string): string => key.split("+").map((part) =>
  SIGNS[part] ?? (part === "Shift" ? "⇧" : part)).join(" ");

export function Help() {
  if (overlay.value !== "help") return null;
  return (
    <Dialog title="Keys" kind="help">
      <h2>Keys</h2>
      <dl class="keys">
        {ACTIONS.filter((a) => a.keys.length).map((a) => (
          <div key={a.name}>
            <dt>{a.keys.map((k) => <kbd key={k}>{keyText(k)}</kbd>)}</dt>
            <dd>{a.name}</dd>
          </div>
        ))}
      </dl>
      <h3>In a heatmap</h3>
      <p class="muted">
        Arrows move the cursor, <kbd>+</kbd> <kbd>-</kbd> zoom at it, <kbd>0</kbd> shows the whole,
        {" "}<kbd>Home</kbd> <kbd>End</kbd> go along the row, <kbd>Esc</kbd> goes back to the event.
        Wheel and drag do the same.
      </p>
      <p class="row">
        <label>
          <input type="checkbox" checked={keysOn.value} onChange={toggleKeys} /> single-letter keys
        </label>
        <span class="space" />
        <button class="solid" onClick={close} autofocus>Close</button>
      </p>
    </Dialog>
  );
}

const EXAMPLES = [
  "any nan", "absmax > 1e3", "op = d_matmul_w", "d_*", "std < 1e-6 and layer = 2",
];

export function Condition() {
  if (overlay.value !== "condition") return null;
  return <Dialog title="Break when" kind="condition"><ConditionForm /></Dialog>;
}

function ConditionForm() {
  const [text, setText] = useState("");
  const [problem, setProblem] = useState("");
  const submit = (e: SubmitEvent) => {
    e.preventDefault();
    try {
      addCondition(text);
      close();
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <form onSubmit={submit}>
      <h2>Break when</h2>
      <input class="mono" aria-label="Condition" value={text} spellcheck={false} autocomplete="off"
        autofocus placeholder="absmax > 1e3" aria-invalid={problem !== ""}
        onInput={(e) => { setText(e.currentTarget.value); setProblem(""); }} />
      <p class="problem" role="alert">{problem || " "}</p>
      <p class="chips">
        {EXAMPLES.map((x) => (
          <button type="button" class="chip mono" key={x} onClick={() => setText(x)}>{x}</button>
        ))}
      </p>
      <p class="muted">
        min, max, absmax, mean, std, norm, zeros, nans or infs of any output, compared with a
        number; any nan, inf or bad; the name of an op, * for anything; layer = a number; joined
        with and, or. <kbd>c</kbd> goes on to where it holds, <kbd>⇧ C</kbd> backwards.
      </p>
      <p class="row">
        <span class="space" />
        <button type="button" onClick={close}>Cancel</button>
        <button class="solid" disabled={!text.trim()}>Set breakpoint</button>
      </p>
    </form>
  );
}
