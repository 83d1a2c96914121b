"""Why the latent rewards move nothing in the miniature: short runs that reward them alone, more or with more spread."""
