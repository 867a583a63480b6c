"""Inner loops that are differentiated through: the loop, and the memory that its graph takes."""
