"""Attacks on a trained classifier: on its inputs (Carlini-Wagner, projected gradient, a trained perturbation) and on its weights (bit flips)."""
