import { Attention } from "./attention";
import { Bench } from "./benchview";
import { Card } from "./card";
import { Compare } from "./compare";
import { Code } from "./code";
import { Condition, Help } from "./dialogs";
import { EditDialog } from "./edit";
import { FlowScreen } from "./flow";
import { Header } from "./header";
import { Inspector } from "./inspector";
import { Live } from "./liveview";
import { Maths } from "./maths";
import { Palette } from "./palette";
import { Failure, Picker } from "./picker";
import { route } from "./route";
import { current, failure, panes, recording } from "./state";
import { Spine } from "./spine";
import { Transport } from "./transport";

/** What lies beside the spine. */
function Screen() {
  if (current.value === null) return <NoEvents />;
  if (route.value.screen === "attention") return <Attention />;
  if (route.value.screen === "flow") return <FlowScreen />;
  if (route.value.t !== null) return <Inspector />;
  return route.value.bench ? <Bench /> : <Event />;
}

export function App() {
  if (failure.value && !recording.value) return <Failure error={failure.value} />;
  const { screen } = route.value;
  if (screen === "live") return <><Header /><Live /><Overlays /></>;
  if (screen === "compare") return <><Header /><Compare />{failure.value && <Banner />}<Overlays /></>;
  if (route.value.r === null) return <><Header /><Picker /><Overlays /></>;
  if (!recording.value) return <><Header /><main class="quiet" aria-busy="true" /></>;
  const wide = route.value.t !== null || route.value.bench || screen !== "";
  return (
    <>
      <Header />
      <main class={`stage panes-${panes.value} ${wide ? "inspecting" : ""}`}>
        <Spine />
        <Screen />
      </main>
      <Transport />
      {failure.value && <Banner />}
      <Overlays />
    </>
  );
}

function Event() {
  return <><Card /><Maths /><Code /></>;
}

function NoEvents() {
  return (
    <section class="empty-state">
      <h2>Nothing was recorded yet</h2>
      <p>The recording was stopped before its first event. Record the step again.</p>
    </section>
  );
}

function Banner() {
  return (
    <div class="banner" role="alert">
      <p>{failure.value!.message}</p>
      <button onClick={() => (failure.value = null)}>Dismiss</button>
    </div>
  );
}

function Overlays() {
  return <><Palette /><Help /><Condition /><EditDialog /></>;
}
