"""Part III: further chapters."""
