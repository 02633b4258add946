"""`python -m evaluate.compare A B [C ...]`: which checkpoint is better, task by task, on the same samples."""

from __future__ import annotations

import sys

from evaluate.leaderboard.compare import main

if __name__ == "__main__":
    sys.exit(main())
