"""The `bebygan` command: runs the pipeline's command line of the checkout, or of the image, that contains this file."""

import importlib
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run `pipelines.cli` and return its exit code; 2 if this package is installed without the pipeline."""
    if not (_ROOT / "pipelines" / "cli.py").is_file():
        print(
            "error: the installed package bebygan is the library alone; the pipeline's commands run from a checkout: "
            "clone the project's repository, run `make setup` there and use its .venv/bin/bebygan",
            file=sys.stderr,
        )
        return 2
    # First, so that neither the working folder nor an installed package can replace components and pipelines.
    sys.path.insert(0, str(_ROOT))
    # By name: the library must not import the pipeline.
    code: int = importlib.import_module("pipelines.cli").main()
    return code


if __name__ == "__main__":
    sys.exit(main())
