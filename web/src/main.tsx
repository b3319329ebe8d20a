import { effect } from "@preact/signals";
import { render } from "preact";

import { takeToken } from "./api";
import { App } from "./app";
import { applyTheme, theme } from "./colour";
import { startComparing } from "./comparing";
import { listenKeys } from "./keys";
import { startFollowing } from "./live";
import { listen } from "./route";
import { loadRuns, start } from "./state";

takeToken();
listen();
effect(() => (theme(), applyTheme()));
listenKeys();
start();
startComparing();
startFollowing();
void loadRuns();
render(<App />, document.getElementById("app")!);
