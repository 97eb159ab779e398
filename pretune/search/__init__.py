"""The search of a study: programs, pruning and Optuna; no Ray in here."""
