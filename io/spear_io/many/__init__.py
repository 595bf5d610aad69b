"""Many records: where they come from, who works on them, what is kept of those that are done, and one file in the end."""
