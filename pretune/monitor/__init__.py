"""A running study, on the terminal and for Prometheus."""
