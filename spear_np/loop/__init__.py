"""The loop: options, budget, reports and history, whatever the problem is that it inverts."""
