"""`python -m components.train.torchrun`: torchrun with the exit code of the process that failed first.

torchrun itself always exits with 1, for a preemption as for an invalid parameter. Its arguments come from the command
line and from PET_* variables: `-m components.train --patches ...`.
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
"""Time for another machine to report its failure; otherwise ours would appear to have failed first."""


def _code_of(failures: Collection[ProcessFailure]) -> int:
    """Return the exit code of the first failure that is not the effect of another."""
    # A negative code is a signal. SIGKILL may mean that memory ran out, or come from torchrun after an ignored SIGTERM.
    ranks = {Preempted.exit_code: 2, -signal.SIGTERM: 3}
    first = min(failures, key=lambda each: (ranks.get(each.exitcode, int(each.exitcode < 0)), each.timestamp))
    return first.exitcode if first.exitcode >= 0 else 128 - first.exitcode


def main(arguments: Sequence[str]) -> int:
    """Run torchrun and return the exit code: 75 after SIGTERM, or if another machine was lost or missing."""
    several = int(os.environ.get("PET_NNODES", "1")) > 1
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        code = _code_of(error.failures.values())
        if code == Preempted.exit_code and several:
            # torchrun's own handler is still installed and would raise.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
            time.sleep(SECONDS_FOR_OTHERS)
        return code
    except SignalException as error:
        # torchrun has forwarded the signal, and its processes have saved their state.
        return Preempted.exit_code if error.sigval == signal.SIGTERM else 128 + int(error.sigval)
    except DistError as error:
        # No process has started. A machine may take longer to start than torchrun waits.
        place = f"{os.environ.get('PET_MASTER_ADDR')}:{os.environ.get('PET_MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        print(f"error: the machines of the training did not meet at {place} ({reason})", file=sys.stderr, flush=True)
        return Preempted.exit_code if several else ServiceError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
