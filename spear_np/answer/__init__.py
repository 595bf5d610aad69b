"""What the solver hands back, as data: the certificate and the inversion."""
