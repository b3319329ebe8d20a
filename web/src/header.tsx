import { useState } from "preact/hooks";

import { theme, toggleTheme } from "./colour";
import { count, gap, short } from "./format";
import {
  openRecording, overlay, recording, toggleScreen, verification, verify, type Verification,
} from "./state";
import { compareHere, editText, labelOf, listed, type Listed } from "./comparing";
import { openLive } from "./live";
import { navigate, route } from "./route";
import type { Manifest } from "./types";

export function Header() {
  const m = recording.value?.manifest;
  return (
    <header class="top">
      <button class="brand" onClick={() => openRecording(null)} title="All recordings">
        <Mark /> backglass
      </button>
      <Screens />
      {m && <Where m={m} />}
      <span class="space" />
      {m && <OwnBadge m={m} />}
      {m && <ReplayBadge v={verification.value} />}
      <button class="plain" onClick={() => (overlay.value = "palette")}>
        Search <kbd>/</kbd>
      </button>
      <button class="icon" onClick={toggleTheme} title="Light or dark" aria-label="Light or dark">
        {theme() === "dark" ? "☾" : "☀"}
      </button>
      <button class="icon" onClick={() => (overlay.value = "help")} title="Keys (?)"
        aria-label="Keys">?</button>
    </header>
  );
}

function Screens() {
  const { screen, r } = route.value;
  if (r === null && !screen) return null;
  const to = (name: string, title: string, act: () => void) => (
    <button aria-current={screen === name ? "page" : undefined} title={title} onClick={act}>
      {name || "step"}
    </button>
  );
  return (
    <nav class="screens" aria-label="Screens">
      {to("", "The recorded step", () => navigate({ screen: "" }))}
      {r !== null && to("attention", "Every layer and head (a)", () => toggleScreen("attention"))}
      {r !== null && to("flow", "Sizes along the layers (f)", () => toggleScreen("flow"))}
      {to("compare", "Two recordings (Shift+D)", compareHere)}
      {to("live", "Curves of runs (Shift+R)", openLive)}
    </nav>
  );
}

export function Mark() {
  return (
    <svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
      <path d="M9 5v22" class="mark-spine" />
      <path d="M9 10h8a5 5 0 0 1 0 10H9" class="mark-branch" />
      <circle cx="9" cy="20" r="3.4" class="mark-dot" />
    </svg>
  );
}

function Where({ m }: { m: Manifest }) {
  const all = listed.value;
  const label = (x: Listed) => `${labelOf(x)} · level ${x.level}`;
  return (
    <>
      <select class="recording" aria-label="Recording" value={route.value.r ?? ""}
        onChange={(e) => openRecording(e.currentTarget.value)}>
        {all.map((x) => <option value={x.id} key={x.id}>{label(x)}</option>)}
      </select>
      <span class="facts">
        {m.device} · {m.dtype}
        {m.loss !== undefined && <> · loss <b>{short(m.loss)}</b></>}
        {m.grad_norm !== undefined && <> · ‖g‖ <b>{short(m.grad_norm)}</b></>}
      </span>
      {m.fork && <span class="badge note">what if {editText(m.fork)}</span>}
      {!m.complete && <span class="badge warn">cut off</span>}
    </>
  );
}

/** The run's own program may be another one: say so, and what difference that makes. */
function OwnBadge({ m }: { m: Manifest }) {
  const { own } = m;
  if (!own || m.loss === undefined || m.grad_norm === undefined) return null;
  const other = [
    own.attention === "flash" && "flash attention",
    own.fused.length > 0 && "fused ops",
  ].filter(Boolean);
  if (!other.length) return null;
  const loss = gap(m.loss, own.loss);
  const norm = gap(m.grad_norm, own.grad_norm);
  const same = m.program === "own";
  const long = same
    ? `What you see is the program as the run executes it, with ${other.join(" and ")}`
      + `${own.fused.length ? ` (${own.fused.join(", ")})` : ""}. Its loss differs from the run's by `
      + `${loss} of itself, its gradient norm by ${norm}. Levels 1 to 3 record the plain program.`
    : `The run itself computes with ${other.join(" and ")}`
    + `${own.fused.length ? ` (${own.fused.join(", ")})` : ""}. What you see is the plain program, `
    + `attention spelled out. Its loss differs by ${loss} of itself, its gradient norm by ${norm}.`;
  return (
    <span class="badge note" title={long} tabIndex={0} aria-label={long}>
      {same ? "as it ran" : "run"}: {other.join(" + ")} <i>Δloss {loss} · Δ‖g‖ {norm}</i>
    </span>
  );
}

export function verdictText(v: Verification): { text: string; mood: string; long: string } {
  if (v.state === "none") {
    return { text: "not verified", mood: "", long: "Do the step again and compare every hash" };
  }
  if (v.state === "running") {
    const part = v.total ? ` ${Math.floor((100 * v.done) / v.total)}%` : "";
    return { text: `replaying${part}`, mood: "busy", long: "The step is being done again" };
  }
  if (v.state === "refused") return { text: "cannot verify", mood: "warn", long: v.why };
  const { diverged, damaged, agreed } = v.verdict;
  if (damaged.length) {
    const names = damaged.map((x) => `${x.tensor} #${x.number}`).join(", ");
    return {
      text: `damaged: ${damaged[0].tensor}${damaged.length > 1 ? ` +${damaged.length - 1}` : ""}`,
      mood: "bad", long: `What is stored is not what was written: ${names}`,
    };
  }
  if (diverged) {
    const where = diverged.event === null ? "before the first event" : `at event ${diverged.event}`;
    return {
      text: `diverged ${where}`, mood: "bad", long: `${diverged.text}: ${diverged.tensor} differs`,
    };
  }
  return {
    text: "replay bit-exact", mood: "good",
    long: `The step was done again: ${count(agreed)} tensors, the same hashes`,
  };
}

function ReplayBadge({ v }: { v: Verification }) {
  const [asked, setAsked] = useState(false);
  const { text, mood, long } = verdictText(v);
  const busy = v.state === "running";
  const part = busy && v.total ? v.done / v.total : 0;
  return (
    <span class={`replay badge ${mood}`} data-testid="replay" role="status">
      <span class="fill" style={{ transform: `scaleX(${part})` }} />
      <span class="label" title={long}>{text}</span>
      <button disabled={busy} onClick={() => (setAsked(true), void verify())}
        title="Do the step again and compare every hash">
        {asked && v.state !== "none" ? "again" : "verify"}
      </button>
    </span>
  );
}
