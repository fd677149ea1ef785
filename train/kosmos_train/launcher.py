"""torchrun with the exit code of its ranks, for schedulers: ``python -m kosmos_train.launcher`` and torchrun's options.

torchrun itself ends with 1 whatever went wrong. Here, as with ``kosmos train`` alone, 75 says that a signal ended the
run early (started again it resumes) and 2 that settings or data are wrong (starting it again does not help).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from .pretrain import INTERRUPTED


def main(argv: Sequence[str]) -> int:
    """Run torchrun; return 0, the exit code of the rank that failed first, or 75 after a signal."""
    # Every micro-batch has another number of pictures: without this the GPU's memory falls into pieces.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    try:
        torchrun.main(list(argv))
    except ChildFailedError as error:
        print(f"kosmos: {error}", file=sys.stderr)
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode  # killed by a signal: as shells say
    except SignalException as error:
        print(f"kosmos: {error}", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
