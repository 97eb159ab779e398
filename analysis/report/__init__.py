"""The report: which tables and figures, in which order, as one HTML file."""
