"""Training and judging networks: the loop, recipes, teachers, one distilled student, importing checkpoints."""
