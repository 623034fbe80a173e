"""The network on trial: what its score does when parts of the image go, and what its maps do when its weights go."""
