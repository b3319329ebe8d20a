/** Everything by keyboard.  Keys are single letters, so they can be switched off. */

import { signal } from "@preact/signals";

import { closeBench, openBench, stopCheck } from "./bench";
import { proceed, stopSearching, toggleStop } from "./breakpoints";
import { compareHere, toggleDifference, trainingStep } from "./comparing";
import { openEdit } from "./edit";
import { exportMoment } from "./export";
import { openLive } from "./live";
import { route } from "./route";
import { toggleTheme } from "./colour";
import { forGood } from "./storage";
import {
  at, bad, closeTensor, current, events, fail, go, inspect, layer, openRecording, overlay, panes,
  playing, say, toggleScreen, twin, verify, versionStep, type Panes,
} from "./state";
import { settle } from "./route";

export const keysOn = signal(forGood.getItem("keys") !== "off");

export function toggleKeys(): void {
  keysOn.value = !keysOn.value;
  forGood.setItem("keys", keysOn.value ? "on" : "off");
}

export interface Action {
  name: string;
  keys: string[];
  act: () => void;
  /** Also where no event is open. */
  anywhere?: boolean;
}

const pane = (which: Panes) => () => {
  panes.value = panes.value === which ? "both" : which;
  if (route.value.t !== null) closeTensor();
};

const continueTo = (direction: 1 | -1) => () => void proceed(direction).catch(fail);

/** The names of keys are KeyboardEvent.key, with Shift+ where a letter or an arrow wants it. */
export const ACTIONS: Action[] = [
  { name: "Next event", keys: ["ArrowRight", "l"], act: () => go(at.value + 1) },
  { name: "Previous event", keys: ["ArrowLeft", "h"], act: () => go(at.value - 1) },
  { name: "Next part of the model", keys: ["Shift+ArrowRight", "Shift+ArrowDown"],
    act: () => layer(1) },
  { name: "Previous part of the model", keys: ["Shift+ArrowLeft", "Shift+ArrowUp"],
    act: () => layer(-1) },
  { name: "First event", keys: ["Home"], act: () => go(0) },
  { name: "Last event", keys: ["End"], act: () => go(events.value.length - 1) },
  { name: "Twin: between forward and backward", keys: ["t"], act: twin },
  { name: "Version of the tensor before", keys: ["["], act: () => void versionStep(-1) },
  { name: "Next version of the tensor", keys: ["]"], act: () => void versionStep(1) },
  { name: "Look into the first output", keys: ["i"],
    act: () => current.value && inspect(current.value.first) },
  { name: "Play or pause", keys: [" "], act: () => (playing.value = !playing.value) },
  { name: "Breakpoint here", keys: ["b"], act: () => toggleStop(at.value) },
  { name: "Breakpoint on a condition …", keys: ["Shift+B"],
    act: () => (overlay.value = "condition") },
  { name: "Continue to the next breakpoint", keys: ["c"], act: continueTo(1) },
  { name: "Continue backwards in time", keys: ["Shift+C"], act: continueTo(-1) },
  { name: "Not finite: the origin, then the next event", keys: ["n"], act: () => bad(1) },
  { name: "Not finite: the origin, then the event before", keys: ["Shift+N"], act: () => bad(-1) },
  { name: "Gradient bench: check this event now", keys: ["g"], act: openBench },
  { name: "Maths alone, or beside the code", keys: ["m"], act: pane("math") },
  { name: "Code alone, or beside the maths", keys: ["s"], act: pane("code") },
  { name: "Verify: do the step again and compare every hash", keys: ["v"],
    act: () => void verify() },
  { name: "What if the cell under the cursor were another number …", keys: ["e"], act: openEdit },
  { name: "Difference to the version before, or to the other recording", keys: ["d"],
    act: toggleDifference },
  { name: "Recorded step of the run before", keys: [","], act: () => void trainingStep(-1) },
  { name: "Next recorded step of the run", keys: ["."], act: () => void trainingStep(1) },
  { name: "Compare two recordings", keys: ["Shift+D"], act: compareHere, anywhere: true },
  { name: "Runs: curves of a training in progress", keys: ["Shift+R"], act: openLive,
    anywhere: true },
  { name: "Attention of every layer and head", keys: ["a"],
    act: () => toggleScreen("attention"), anywhere: true },
  { name: "Flow through the layers: activations, gradients, updates", keys: ["f"],
    act: () => toggleScreen("flow"), anywhere: true },
  { name: "Copy a link to this moment", keys: ["y"], act: () => void copyLink(), anywhere: true },
  { name: "Export this moment as one HTML file", keys: ["x"], act: () => void exportMoment(),
    anywhere: true },
  { name: "Search", keys: ["/", "Ctrl+k"], act: () => (overlay.value = "palette"),
    anywhere: true },
  { name: "Keys", keys: ["?"], act: () => (overlay.value = "help"), anywhere: true },
  { name: "Light or dark", keys: [], act: toggleTheme },
  { name: "Switch single-letter keys off or on", keys: [], act: toggleKeys },
  { name: "All recordings", keys: [], act: () => openRecording(null) },
];

async function copyLink(): Promise<void> {
  await navigator.clipboard.writeText(settle()).then(
    () => say("link copied; it works in a tab that has the token"),
    () => say("the browser does not allow copying; the address bar has the link"));
}

/** How a pressed key is called above. */
function nameOf(e: KeyboardEvent): string {
  const key = e.key.length === 1 && e.shiftKey && /[a-z]/i.test(e.key)
    ? `Shift+${e.key.toUpperCase()}` : e.key.startsWith("Arrow") && e.shiftKey
      ? `Shift+${e.key}` : e.key;
  return e.ctrlKey || e.metaKey ? `Ctrl+${e.key.toLowerCase()}` : key;
}

const typing = (e: KeyboardEvent): boolean =>
  e.target instanceof HTMLElement && e.target.matches("input, select, textarea");

/** Space and Enter press the button that has the focus; they are not ours then. */
const pressing = (e: KeyboardEvent): boolean =>
  (e.key === " " || e.key === "Enter") && e.target instanceof HTMLElement
  && e.target.matches("button, [role=button]") && !e.target.matches(".play");

export function listenKeys(): void {
  addEventListener("keydown", (e) => {
    if (e.key === "Escape") return escape();
    if (overlay.value !== "none" || typing(e) || pressing(e) || e.altKey) return;
    const name = nameOf(e);
    if (!keysOn.value && name.length === 1) return;
    const action = ACTIONS.find((a) => a.keys.includes(name));
    if (!action || !(events.value.length || action.anywhere)) return;
    e.preventDefault();
    action.act();
  });
}

/** Screens that Escape leads back from. */
const OVER_EVENT = ["attention", "flow"];

function escape(): void {
  stopSearching();
  playing.value = false;
  if (overlay.value !== "none") overlay.value = "none";
  else if (route.value.t !== null) closeTensor();
  else if (!stopCheck() && route.value.bench) closeBench();
  else if (OVER_EVENT.includes(route.value.screen)) toggleScreen(route.value.screen);
}
