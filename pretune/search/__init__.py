"""What a study tries: programs, pruning and Optuna; no Ray in here."""
