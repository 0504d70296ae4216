"""Models, peers and measurements; nothing here is installed."""
