"""From files to splits: the corpus, its alignment, its examples and how they are divided."""
