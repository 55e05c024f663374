"""Generate `fairlead/v1/` from the protos: messages, services and typed stubs.

`--check` generates into a temporary folder and fails on any difference; the lint step runs it.
"""

from __future__ import annotations

import argparse
import filecmp
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(target: pathlib.Path) -> None:
    """Write the generated package `fairlead/v1` into `target`."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("fairlead/v1/*.proto"))
    services = [source for source in sources if source.endswith("_service.proto")]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    subprocess.run([*protoc, f"--python_out={target}", f"--mypy_out=quiet:{target}", *sources], check=True)
    subprocess.run(
        [*protoc, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services], check=True
    )
    (target / "fairlead" / "v1" / "__init__.py").write_text(
        '"""Generated from protos/fairlead/v1 by `make protos`; not edited by hand."""\n'
    )


def main() -> int:
    """Generate the package, or compare it with the committed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference, write nothing")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = pathlib.Path(folder)
        (fresh / "fairlead" / "v1").mkdir(parents=True)
        generate(fresh)
        names = {path.name for where in (fresh, ROOT) for path in (where / "fairlead" / "v1").glob("*.py*")}
        _, different, missing = filecmp.cmpfiles(
            fresh / "fairlead" / "v1", ROOT / "fairlead" / "v1", sorted(names), shallow=False
        )
    for name in different + missing:
        sys.stderr.write(f"fairlead/v1/{name} differs from the protos: run `make protos`\n")
    return 1 if different or missing else 0


if __name__ == "__main__":
    sys.exit(main())
