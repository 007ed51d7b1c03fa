"""Image synthesis: a base class, and a module for each family of methods."""
