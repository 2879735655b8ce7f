"""The tests' pycuda: no GPU is needed, and misuse is an error."""
