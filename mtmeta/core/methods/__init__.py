"""What a recipe may put beside any algorithm."""
