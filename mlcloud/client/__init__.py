"""What runs in the notebook: a thin client that never imports ray, torch or the gateway."""
