"""Why the latent rewards teach no other latents: short runs that reward them alone, more, or with more spread."""
