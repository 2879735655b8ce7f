"""Stand-ins for hardware, each a process of its own, used only when the configuration says so."""
