"""From directions to inputs: reconstruction, error bounds, partial batches, scale."""
