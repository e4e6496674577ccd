"""`python -m components.train.torchrun`: torchrun whose exit code is that of the process that failed first.

torchrun itself ends with 1 whatever its processes meet, and whoever started it could not tell a preemption, after which
to go on, from a parameter that will never do. The arguments are torchrun's, which also takes them from PET_*
variables: `-m components.train --patches ...`.
"""

import signal
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bebygan.errors import Preempted


def main(arguments: Sequence[str]) -> int:
    """Run torchrun and return the exit code."""
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        # A negative one names the signal.
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        # It has passed the signal on and waited until its processes had saved.
        return Preempted.exit_code if error.sigval == signal.SIGTERM else 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
