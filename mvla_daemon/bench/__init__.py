"""`mvla-daemon bench --policies`: policies against each other, FP32 against FP16, on each engine present."""
