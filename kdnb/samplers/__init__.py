"""What hands images to the student: guided diffusion, a reusable generator, the methods of `field`, pools and other supplies."""
