"""What is known of layers: activations, stochastic depth, hooks, their current state, their classes."""
