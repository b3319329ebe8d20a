import { useState } from "preact/hooks";

import { setToken, type ApiError } from "./api";
import { Forks } from "./compare";
import { compareHere } from "./comparing";
import { count } from "./format";
import { Mark } from "./header";
import { openLive } from "./live";
import { failure, loadRuns, openRecording, runs } from "./state";
import { route } from "./route";
import type { RecordingInfo, Run } from "./types";

export function Picker() {
  const found = runs.value;
  if (!found) return <main class="quiet" aria-busy="true" />;
  const some = found.some((run) => run.recordings.length);
  return (
    <main class="picker">
      <h1>{some ? "Recorded steps" : "No recorded steps yet"}</h1>
      {found.length > 0 && (
        <p class="row ways">
          <button onClick={openLive}>Curves <kbd>⇧ R</kbd></button>
          {some && <button onClick={compareHere}>Compare <kbd>⇧ D</kbd></button>}
        </p>
      )}
      {!some && <Empty runs={found} />}
      {found.filter((run) => run.recordings.length).map((run) => <RunCard run={run} key={run.id} />)}
      <Forks />
      {some && <Unrecorded runs={found.filter((run) => !run.recordings.length)} />}
    </main>
  );
}

function RunCard({ run }: { run: Run }) {
  return (
    <section class="run">
      <h2>{run.name} <small>{run.preset}</small></h2>
      <ul>
        {run.recordings.filter((x) => !x.fork).map((x) => (
          <li key={x.id}>
            <button class="choice" onClick={() => openRecording(x.id)}>
              <b>step {count(x.step)}</b>
              <span>{count(x.events)} events</span>
              <span>{kept(x)}</span>
              <span>{x.device} · {x.dtype}</span>
              {!x.complete && <span class="badge warn">cut off</span>}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

const kept = ({ level }: RecordingInfo): string =>
  ["statistics", "statistics and pictures", "some tensors", "every tensor"][level] ?? "";

function Empty({ runs }: { runs: Run[] }) {
  const run = runs[0]?.name ?? "RUN";
  return (
    <div class="lead">
      <p>
        {runs.length ? `${runs.length === 1 ? "There is a run here" : "There are runs here"}, but `
          + "no step of it was recorded op by op." : "There is no run here."}
      </p>
      {!runs.length && <pre>backglass train tiny --steps 100 --out runs/a</pre>}
      <pre>backglass trace {runs.length ? run : "runs/a"} --level 3</pre>
      <p>records a step with every tensor; then reload this page.</p>
    </div>
  );
}

function Unrecorded({ runs }: { runs: Run[] }) {
  if (!runs.length) return null;
  return (
    <p class="lead muted">
      Without a recorded step: {runs.map((run) => run.name).join(", ")}.{" "}
      <code>backglass trace RUN --level 3</code> records one.
    </p>
  );
}

export function Failure({ error }: { error: ApiError }) {
  const locked = error.status === 401 || error.status === 403;
  return (
    <main class="failure">
      <Mark />
      <h1>{locked ? "This page needs its token" : "That did not work"}</h1>
      <p role="alert">{error.message}</p>
      {locked ? <TokenForm /> : (
        <p class="row">
          <button class="solid" onClick={() => location.reload()}>Try again</button>
          {route.value.r !== null && (
            <button onClick={() => { failure.value = null; openRecording(null); void loadRuns(); }}>
              All recordings
            </button>
          )}
        </p>
      )}
    </main>
  );
}

function TokenForm() {
  const [text, setText] = useState("");
  const submit = (e: SubmitEvent) => {
    e.preventDefault();
    setToken(text.trim().replace(/^.*#token=/, ""));
    location.reload();
  };
  return (
    <form onSubmit={submit}>
      <p>
        Open the address that <code>backglass studio</code> printed, ending in <code>#token=…</code>,
        or paste it here. A new tab needs it once.
      </p>
      <p class="row">
        <input aria-label="Token" value={text} autocomplete="off" spellcheck={false} autofocus
          onInput={(e) => setText(e.currentTarget.value)} placeholder="http://127.0.0.1:…/#token=…" />
        <button class="solid" disabled={!text.trim()}>Open</button>
      </p>
    </form>
  );
}
