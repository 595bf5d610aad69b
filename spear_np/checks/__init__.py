"""What `exact` means: the checks of a recovered batch and the status that they allow."""
