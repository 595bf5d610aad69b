"""From candidates to directions of inputs: null vectors, polish, pool, choice, uniqueness, refinement."""
