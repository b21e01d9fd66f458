"""Training: samples, recipes, and one loop for every model of tubelet."""
