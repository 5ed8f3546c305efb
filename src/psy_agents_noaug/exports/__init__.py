"""A trained model in the formats of others, with a model card."""
