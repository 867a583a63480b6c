"""What a recipe may put beside any algorithm, below the loop that trains it."""
