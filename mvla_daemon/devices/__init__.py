"""Which cameras and serial ports there are, who may use them, and what to write into the configuration."""
