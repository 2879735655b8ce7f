"""The self-test: faults injected into a real daemon that drives a robot on blocks."""
