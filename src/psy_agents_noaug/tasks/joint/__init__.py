"""The joint task: label and evidence together."""
