"""`python -m bebygan.pretrained`: download pretrained weights ahead of time."""

import argparse
import sys
from collections.abc import Sequence

from bebygan.errors import BebyganError
from bebygan.pretrained import DEFAULT, KNOWN, weights_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Download weights, print the path of each, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bebygan.pretrained",
        description="Download pretrained weights into the cache and print their paths.",
        epilog="exit codes: 0 done, 2 unknown name or source, 5 no source has the weights, 6 disk full or read-only",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(KNOWN)} (default: {' '.join(DEFAULT)})")
    try:
        for name in parser.parse_args(arguments).names or DEFAULT:
            print(f"{name}: {weights_file(name)}", flush=True)
    except BebyganError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
