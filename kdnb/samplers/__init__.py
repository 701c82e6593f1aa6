"""What hands images to the student: guided diffusion, a reusable generator, a replay buffer."""
