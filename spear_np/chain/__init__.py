"""Consecutive layers: what the gradient of the next layer says of the inputs of this one, whatever the activation."""
