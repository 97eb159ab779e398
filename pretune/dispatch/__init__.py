"""Which stage runs next, where, and how it ended; no Ray in here."""
