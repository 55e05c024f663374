"""`python -m monitoring [--check]`: write the PrometheusRule and the dashboards of k8s/components/monitoring.

With `--check` nothing is written; the command fails if a file is not what it would write.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from monitoring.boards import BOARDS
from monitoring.grafana import dashboard

ROOT = Path(__file__).parents[1]
RULES = Path(__file__).with_name("rules.yaml")
COMPONENT = ROOT / "k8s" / "components" / "monitoring"
_RULE_HEAD = """\
# `python -m monitoring` writes this file from monitoring/rules.yaml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fairlead
  labels:
    app.kubernetes.io/name: fairlead
    app.kubernetes.io/component: monitoring
    app.kubernetes.io/part-of: fairlead
spec:
"""


def files() -> Mapping[Path, str]:
    """Return the text of each file that is generated."""
    rules = RULES.read_text(encoding="utf-8")
    body = rules[rules.index("groups:\n") :]
    indented = "".join(f"  {line}" if line.strip() else line for line in body.splitlines(keepends=True))
    found = {COMPONENT / "prometheus-rule.yaml": _RULE_HEAD + indented}
    for board in BOARDS:
        text = json.dumps(dashboard(board), indent=1, ensure_ascii=False) + "\n"
        found[COMPONENT / "dashboards" / f"{board.name}.json"] = text
    return found


def main(*, check: bool) -> int:
    """Write the files, or compare them; return the exit code."""
    wanted = files()
    present = {*COMPONENT.glob("dashboards/*.json"), *wanted}
    for path in sorted(present):
        text = wanted.get(path)
        if text == (path.read_text(encoding="utf-8") if path.exists() else None):
            continue
        if check:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not up to date: run python -m monitoring\n")
            return 1
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
