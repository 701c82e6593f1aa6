"""What is kept on disk: paths, whole files, checkpoints, the artifact cache, names."""
