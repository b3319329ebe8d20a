/** Search: every action, every event, every tensor. */

import { computed } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";

import * as api from "./api";
import { Dialog, keyText } from "./dialogs";
import { ACTIONS } from "./keys";
import { route } from "./route";
import { events, fail, go, inspect, overlay } from "./state";

interface Entry {
  kind: string;
  text: string;
  hint: string;
  act: () => void;
}

const MOST = 60;

/** Tensors by the line that makes them first, told from the text of lines. */
const tensors = computed(() => {
  const found = new Map<string, number>();
  for (const e of events.value) {
    if (e.phase === "update") continue;
    for (const name of e.text.split(" = ")[0].split(", ")) {
      const plain = name.replace(/\+$/, "");
      if (!found.has(plain)) found.set(plain, e.k);
    }
  }
  return found;
});

const entries = computed<Entry[]>(() => [
  ...ACTIONS.map((a) => ({
    kind: "action", text: a.name, hint: a.keys.map(keyText).join("  "), act: a.act,
  })),
  ...[...tensors.value].map(([name, k]) => ({
    kind: "tensor", text: name, hint: `event ${k}`, act: () => void openTensor(name, k).catch(fail),
  })),
  ...events.value.map((e) => ({
    kind: e.phase === "update" ? "optimizer" : e.phase, text: e.text, hint: `${e.k}`,
    act: () => go(e.k),
  })),
]);

async function openTensor(name: string, k: number): Promise<void> {
  const made = (await api.event(route.value.r!, k)).outs;
  const found = made.find((o) => o.version.tensor === name) ?? made[0];
  go(k);
  inspect(found.version.id);
}

/** How well a text answers: all letters in order, close together and at the start of words. */
export function score(text: string, asked: string): number {
  const whole = text.toLowerCase();
  const found = whole.indexOf(asked);
  if (found >= 0) return 1000 - found - text.length / 10 + (found === 0 ? 200 : 0);
  let from = 0;
  let gaps = 0;
  for (const letter of asked) {
    const next = whole.indexOf(letter, from);
    if (next < 0) return -1;
    gaps += next - from;
    from = next + 1;
  }
  return 300 - gaps - text.length / 10;
}

function search(asked: string): Entry[] {
  const words = asked.trim().toLowerCase();
  if (/^\d+$/.test(words) && events.value[Number(words)]) {
    const e = events.value[Number(words)];
    return [{ kind: "event", text: e.text, hint: `${e.k}`, act: () => go(e.k) }];
  }
  if (!words) return entries.value.slice(0, MOST);
  return entries.value
    .map((entry) => ({ entry, at: score(entry.text, words) }))
    .filter(({ at }) => at >= 0)
    .sort((a, b) => b.at - a.at)
    .slice(0, MOST)
    .map(({ entry }) => entry);
}

export function Palette() {
  if (overlay.value !== "palette") return null;
  return <Dialog title="Search" kind="palette"><Search /></Dialog>;
}

function Search() {
  const [asked, setAsked] = useState("");
  const [place, setPlace] = useState(0);
  const list = useRef<HTMLUListElement>(null);
  const found = search(asked);
  const chosen = Math.min(place, found.length - 1);
  useEffect(() => list.current?.children[chosen]?.scrollIntoView({ block: "nearest" }), [chosen]);
  const take = (entry: Entry | undefined) => {
    overlay.value = "none";
    entry?.act();
  };
  const keys = (e: KeyboardEvent) => {
    if (e.key === "ArrowDown") setPlace(Math.min(found.length - 1, chosen + 1));
    else if (e.key === "ArrowUp") setPlace(Math.max(0, chosen - 1));
    else if (e.key === "Enter") take(found[chosen]);
    else return;
    e.preventDefault();
  };
  return (
    <>
      <input role="combobox" aria-expanded="true" aria-controls="found" autofocus value={asked}
        aria-activedescendant={`found-${chosen}`} aria-label="Search" spellcheck={false}
        placeholder="an action, a tensor such as h0.qkv, an op, an event's number"
        onInput={(e) => { setAsked(e.currentTarget.value); setPlace(0); }} onKeyDown={keys} />
      <ul id="found" role="listbox" ref={list} aria-label="Found">
        {found.map((entry, i) => (
          <li role="option" id={`found-${i}`} key={i} aria-selected={i === chosen}
            onPointerMove={() => setPlace(i)} onClick={() => take(entry)}>
            <span class={`kind ${entry.kind}`}>{entry.kind}</span>
            <span class={entry.kind === "action" ? "" : "mono"}>{entry.text}</span>
            <span class="hint num">{entry.hint}</span>
          </li>
        ))}
      </ul>
      {!found.length && <p class="muted none">Nothing is called so.</p>}
    </>
  );
}
