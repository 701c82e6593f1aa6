"""Networks that make images: from noise (latent, reusable) or from images (perturbation)."""
