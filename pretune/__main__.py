"""`python -m pretune`: how a job on a cluster starts, where the console script may not be installed.

`python -m` puts the working folder first on the path: a `pretune.py` there is run instead of this (`python -P -m
pretune` prevents that). Everything else of ours and of others is imported from where it is installed.
"""

import os
import sys

if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    del sys.path[0]

from pretune.cli import main  # after the working folder is off the path

main()
