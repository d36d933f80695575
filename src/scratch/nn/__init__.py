"""Part I: neural networks, from one neuron to a trained classifier."""
