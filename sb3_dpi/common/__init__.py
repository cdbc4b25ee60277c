"""What several algorithms share; knows Stable-Baselines3 and torch."""
