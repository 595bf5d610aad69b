"""What people see: tables, progress, overviews, the comparison with the truth."""
