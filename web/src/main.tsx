import { effect } from "@preact/signals";
import { render } from "preact";

import { takeToken } from "./api";
import { App } from "./app";
import { applyTheme, theme } from "./colour";
import { listenKeys } from "./keys";
import { listen } from "./route";
import { loadRuns, start } from "./state";

takeToken();
listen();
effect(() => (theme(), applyTheme()));
listenKeys();
start();
void loadRuns();
render(<App />, document.getElementById("app")!);
