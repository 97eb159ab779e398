"""The content-addressed store of finished stage runs."""
