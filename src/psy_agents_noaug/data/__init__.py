"""From files to model input: corpus, alignment, examples, splits, tokens and windows."""
