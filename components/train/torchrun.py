"""`python -m components.train.torchrun`: torchrun whose exit code is that of the process that failed first.

torchrun itself ends with 1 whatever its processes meet, and whoever started it could not tell a preemption, after which
to go on, from a parameter that will never do. The arguments are torchrun's, which also takes them from PET_*
variables: `-m components.train --patches ...`.
"""

import os
import signal
import sys
import time
from collections.abc import Collection, Sequence

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from bebygan.errors import Preempted, ServiceError

SECONDS_FOR_OTHERS = 30.0
"""For another machine to tell why it ended; ours would seem to be the first to end otherwise."""


def _likeness_to_an_echo(code: int) -> int:
    """Order exit codes, of which a negative one names a signal, from what a process says of itself to mere echoes.

    SIGKILL may be its own end, for want of memory, or torchrun's, which ends those that do not hear SIGTERM.
    """
    if code == Preempted.exit_code:
        return 2
    return 3 if code == -signal.SIGTERM else int(code < 0)


def _code_of(failures: Collection[ProcessFailure]) -> int:
    """Return the exit code of the first failure that is not the echo of another."""
    first = min(failures, key=lambda failure: (_likeness_to_an_echo(failure.exitcode), failure.timestamp))
    return first.exitcode if first.exitcode >= 0 else 128 - first.exitcode


def main(arguments: Sequence[str]) -> int:
    """Run torchrun and return the exit code: 75 after SIGTERM, and where another machine was lost or did not come."""
    several = int(os.environ.get("PET_NNODES", "1")) > 1
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        code = _code_of(error.failures.values())
        if code == Preempted.exit_code and several:
            # torchrun's handler is still there, and would raise.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
            time.sleep(SECONDS_FOR_OTHERS)
        return code
    except SignalException as error:
        # It has passed the signal on and waited until its processes had saved.
        return Preempted.exit_code if error.sigval == signal.SIGTERM else 128 + int(error.sigval)
    except DistError as error:
        # Before any process of ours began. A machine may take longer to be had than torchrun waits.
        place = f"{os.environ.get('PET_MASTER_ADDR')}:{os.environ.get('PET_MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        print(f"error: the machines of the training did not meet at {place} ({reason})", file=sys.stderr, flush=True)
        return Preempted.exit_code if several else ServiceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
