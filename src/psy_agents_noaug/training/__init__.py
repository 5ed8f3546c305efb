"""One training loop and one evaluation loop, for any `Task`."""
