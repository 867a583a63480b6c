<<<<<<< HEAD
"""What a recipe may put beside any algorithm."""
=======
"""What a method adds to a model, below the loop that trains it."""
>>>>>>> lora
