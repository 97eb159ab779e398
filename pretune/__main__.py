"""`python -m pretune`: how a job on a cluster starts, where the console script may not be installed."""

from pretune.cli import main

main()
