"""How motor controllers are spoken to: protocols as bytes only, and the serial port."""
