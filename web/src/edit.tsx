/** What if this number were another: the literal, and how far the step is. */

import { useState } from "preact/hooks";

import { trial, whatIf } from "./comparing";
import { Dialog } from "./dialogs";
import { route } from "./route";
import { overlay, recording, say, selected } from "./state";
import { visible } from "./format";

export function openEdit(): void {
  if (route.value.t === null) say("open a tensor first (i), then choose a cell");
  else overlay.value = "edit";
}

export function EditDialog() {
  if (overlay.value !== "edit" || !selected.value || route.value.t === null) return null;
  return <Dialog title="What if" kind="edit"><Form /></Dialog>;
}

function Form() {
  const { version: v, index, value } = selected.value!;
  const [text, setText] = useState((value ?? "").replace("−", "-"));
  const now = trial.value;
  const busy = now.state === "running";
  const submit = async (e: SubmitEvent) => {
    e.preventDefault();
    if (await whatIf(v.id, index, text.trim())) overlay.value = "none";
  };
  const token = v.tensor === "ids" || v.tensor === "targets";
  const means = token ? recording.value!.text[text.trim()] : undefined;
  const part = busy && now.total ? now.done / now.total : 0;
  return (
    <form onSubmit={submit}>
      <h2>What if <span class="mono">{v.tensor}[{index.join(",")}]</span> were …</h2>
      <p class="row">
        <input class="mono" aria-label="Number" value={text} spellcheck={false} autocomplete="off"
          autofocus disabled={busy} aria-invalid={!busy && now.why !== ""}
          onInput={(e) => { setText(e.currentTarget.value); trial.value = IDLE; }} />
        {token && <span class="muted mono token">{means === undefined ? "" : visible(means)}</span>}
      </p>
      <p class="problem" role="alert">{busy ? " " : now.why || " "}</p>
      <div class="progress" role="progressbar" aria-label="The step is being done again"
        aria-valuenow={Math.round(100 * part)} aria-valuemin={0} aria-valuemax={100}>
        <span style={{ transform: `scaleX(${part})` }} />
      </div>
      <p class="muted">
        {value === null ? "The value was not stored. " : <>It is <b class="mono">{value}</b>. </>}
        The step is done again on the CPU with this one number changed
        {v.event === null ? ", from its beginning" : <>, right after event {v.event}</>}, and kept
        beside the recording as a recording of its own. Nothing of this one changes.
      </p>
      <p class="row">
        <span class="space" />
        <button type="button" disabled={busy} onClick={() => (overlay.value = "none")}>Cancel</button>
        <button class="solid" disabled={busy || !text.trim()}>{busy ? "Running …" : "Run"}</button>
      </p>
    </form>
  );
}

const IDLE = { state: "idle", why: "" } as const;
