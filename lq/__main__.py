"""`python -m lq` is the same command as `lq`."""

import os
import sys

if sys.path and sys.path[0] in ("", os.getcwd()):
    # Python looks into the working directory first, so that a file queue.py there would take a library's place.
    sys.path.append(os.path.abspath(sys.path.pop(0)))

from lq.cli import main

if __name__ == "__main__":
    main()
