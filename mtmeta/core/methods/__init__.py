"""What a method adds to a model, below the loop that trains it."""
