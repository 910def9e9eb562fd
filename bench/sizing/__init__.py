"""How many pods, how much memory and money so many people need. The page is deploy/sizing.md."""
