"""The pure heart: no I/O, no clock, no asyncio; time comes in as `now_ns`."""
