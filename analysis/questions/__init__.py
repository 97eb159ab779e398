"""Numbers that answer a question about stored results; no drawing."""
