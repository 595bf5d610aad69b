"""Programs whose figures the README and docs quote."""
