"""Plans under a budget: what may be chosen, what it costs, what harm it does, and the best choice."""
