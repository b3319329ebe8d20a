"""backglass doctor"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass
class Doctor:
    """Look at this machine: what backglass can use, what is missing, and the command that mends it.

    ok: fine.  --: optional and absent.  BAD: in the way, exit 1.

    For example:
      backglass doctor
      backglass doctor --json > machine.json     to go with a bug report
    """

    json: Annotated[bool, arg(help="findings as JSON")] = False

    def run(self) -> int:
        from backglass.tools.doctor import examine

        findings = examine()
        if self.json:
            print(json.dumps({"rows": [f.row() for f in findings]}))
        else:
            for f in findings:
                mark = {True: "ok ", False: "BAD", None: "-- "}[f.ok]
                print(f"{mark}  {f.name:13s} {f.found}")
                if f.why:
                    print(f"{'':18s} {f.why}")
                if f.fix:
                    print(f"{'':18s} to mend it: {f.fix}")
        return 1 if any(f.ok is False for f in findings) else 0
