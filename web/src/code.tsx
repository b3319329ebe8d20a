/** The lines that ran, as they were when the step was recorded. */

import { useEffect, useRef } from "preact/hooks";

import * as api from "./api";
import { dedent, useFetched } from "./maths";
import { lit, recording, shown } from "./state";
import { route } from "./route";
import type { EventDetail, Maths, Source } from "./types";

const MARK = /#\s*(\d+(?:,\s*\d+)*)(?:,\s*[a-z].*)?$/;

/** The derivation steps that a line implements, from the numbers it ends with. */
export const marksOf = (line: string): number[] =>
  MARK.exec(line)?.[1].split(",").map(Number) ?? [];

export function Code() {
  const e = shown.value;
  return (
    <section class="code pane" aria-label="Code" tabIndex={-1}>
      <h2>Code</h2>
      {e && <Reference op={e.op} />}
      {e && <Kernel e={e} />}
    </section>
  );
}

/** The op in NumPy, each line with the number of the step that it implements. */
function Reference({ op }: { op: string }) {
  const r = route.value.r!;
  const page = useFetched<Maths>((signal) => api.maths(r, op, signal), `${r} ${op}`);
  const text = page ? functionOf(page.numpy, op) : "";
  return (
    <div class="reference">
      <h3>In NumPy <span class="muted">numbers are steps of the derivation</span></h3>
      <div class="lines" tabIndex={0} role="region" aria-label="The op in NumPy">
        {text.split("\n").map((line, i) => <ReferenceLine line={line} key={i} />)}
      </div>
    </div>
  );
}

function ReferenceLine({ line }: { line: string }) {
  const marks = marksOf(line);
  const on = lit.value !== null && marks.includes(lit.value);
  const cut = marks.length ? line.search(MARK) : line.length;
  return (
    <div class={`line ${on ? "lit" : ""}`}
      onMouseEnter={() => marks.length && (lit.value = marks[0])}
      onMouseLeave={() => (lit.value = null)}>
      <span class="gutter">{marks.join(",")}</span>
      <span>{line.slice(0, cut)}<i class="tok-comment">{line.slice(cut)}</i></span>
    </div>
  );
}

/** Of several functions the one that the event called, or all if it is not among them. */
function functionOf(text: string, op: string): string {
  const functions = dedent(text).split(/\n+(?=(?:@|def ))/);
  const own = functions.filter((f) => new RegExp(`^def ${op}\\(`, "m").test(f));
  return (own.length ? own : functions).join("\n\n").trimEnd();
}

function Kernel({ e }: { e: EventDetail }) {
  const r = route.value.r!;
  const source = useFetched<Source>(
    (signal) => api.source(r, e.kernel, signal), `${r} ${e.kernel}`);
  return (
    <div class="kernel" data-op={e.op}>
      <h3>
        Ran <span class="mono path">{e.kernel}</span>
        <span class="muted num">{e.first_line}–{e.last_line}</span>
        {source?.changed && (
          <span class="badge warn" title="You see the file as it was when the step was recorded">
            file changed since
          </span>
        )}
      </h3>
      {source && <Listing source={source} first={e.first_line} last={e.last_line} />}
      <Caller model={e.model} />
    </div>
  );
}

/** The line of the model, or of the step around it, that called the op. */
function Caller({ model }: { model: string }) {
  const r = route.value.r!;
  const [file, line] = model.split(":");
  const known = file in (recording.value?.manifest.sources ?? {});
  const source = useFetched<Source | null>(
    async (signal) => (known ? api.source(r, file, signal) : null), `${r} ${known} ${file}`);
  const text = source?.lines[Number(line) - 1]?.map(([, part]) => part).join("").trim();
  return (
    <p class="called muted" title={text}>
      called from <span class="mono">{model}</span>
      {text && <span class="mono called-line" data-testid="caller">{text}</span>}
    </p>
  );
}

function Listing({ source, first, last }: { source: Source; first: number; last: number }) {
  const box = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const line = box.current?.children[first - 1] as HTMLElement | undefined;
    if (box.current && line) box.current.scrollTop = line.offsetTop;
  }, [source, first]);
  return (
    <div class="lines" ref={box} tabIndex={0} role="region" aria-label="The kernel's source">
      {source.lines.map((tokens, i) => {
        const n = i + 1;
        const ran = n >= first && n <= last;
        return <KernelLine n={n} tokens={tokens} ran={ran} key={n} />;
      })}
    </div>
  );
}

function KernelLine({ n, tokens, ran }: { n: number; tokens: [string, string][]; ran: boolean }) {
  const marks = marksOf(tokens.map(([, text]) => text).join(""));
  const on = ran && marks.length > 0 && marks.includes(lit.value ?? -1);
  return (
    <div class={`line ${ran ? "ran" : ""} ${on ? "lit" : ""}`} data-line={n}>
      <span class="gutter">{n}</span>
      <span class="text">{tokens.map(([kind, text], i) => <span class={`tok-${kind}`} key={i}>{text}</span>)}
      </span>
    </div>
  );
}
