"""mvla-daemon: a neural policy on wheels, behind a gate that stops the robot when it must."""

__version__ = "0.1.0"
