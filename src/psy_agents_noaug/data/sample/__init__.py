"""A small synthetic corpus in ReDSM5's layout, bundled so that everything runs without data."""
