"""The rounds of a search: options and budget, from candidates to a choice, and what is handed out."""
