"""What people see and touch: records, the operator's socket, real-time settings."""
