"""Probes: what a frozen encoder knows."""
