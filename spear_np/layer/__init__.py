"""One ReLU layer as a problem for the loop: what a round does, what is chosen, what is handed out."""
