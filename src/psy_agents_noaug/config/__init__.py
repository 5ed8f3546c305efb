"""The typed configuration and how it is read from the Hydra tree."""
