"""Makes the page of a run: ``python -m cocod_jax.observe RUN``.

Exit status: 0 when the page is written, 2 when the run cannot be read or the page not
be written; a line says why.
"""

import argparse
import sys
from collections.abc import Sequence

from cocod_jax.observe import page


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cocod_jax.observe",
        description="Makes one self-contained HTML page of a run, beside its log.",
        allow_abbrev=False,
    )
    parser.add_argument("run", help="a JSONL log, or the folder of a run")
    try:
        print(page.write(page.log_of(parser.parse_args(argv).run)))
    except (ImportError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
