"""What runs on a GPU node: the session's host, and what lives inside the remote kernel."""
