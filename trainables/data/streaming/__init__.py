"""Images read and decoded just ahead of the training loop."""
