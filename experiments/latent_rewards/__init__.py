"""Why the latent rewards teach no other latents in the miniature: short runs that reward them alone, more or with more spread."""
