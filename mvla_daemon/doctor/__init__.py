"""`mvla-daemon doctor`: all that a bug report needs, and what to do about each thing that stands in a robot's way."""
