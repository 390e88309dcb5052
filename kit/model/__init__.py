"""What goes into a run: weights, images, preprocessing, and the model that they meet in."""
