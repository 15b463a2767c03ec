"""Small networks of agents, their distributions and numpy gradients."""
