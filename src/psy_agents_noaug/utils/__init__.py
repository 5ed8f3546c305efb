"""Small, self-contained tools that do not depend on the rest of the project."""
