"""The door of ``python -m kosmos_train.study``."""

import sys

from kosmos.cli import call

if __name__ == "__main__":
    sys.exit(call("kosmos_train.study.command:main", sys.argv[1:]))
