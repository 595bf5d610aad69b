"""What is known of a layer: validated gradients, their rank and noise, their factors, and what signs say."""
